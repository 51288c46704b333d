//! `hob serve`: a model over HTTP until Ctrl-C or SIGTERM.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use hob_plan::DiskPlan;
use hob_plan::units::show_count;
use hob_serve::{ServeOptions, Server};

use crate::args::ServeArgs;
use crate::exit;
use crate::house::{Ask, House, SERVE_CONVERSATIONS};
use crate::reply;
use crate::term;

/// How often the flag of the signal handler is looked at.
const LOOK: Duration = Duration::from_millis(50);

pub fn serve(house: &House, args: &ServeArgs) -> Result<i32> {
    let model = args.model.wanted(None);
    let ask = Ask {
        model,
        args: &args.model,
        conversations: SERVE_CONVERSATIONS,
        quiet: false,
        profile: args.profile.profile.as_deref(),
    };
    let loaded = house.load(&ask)?;
    let cached = format!("prefix cache: {} tokens in memory", show_count(loaded.plan.cached_tokens as u64));
    let disk = loaded.plan.disk.as_ref().map_or("disk cache: off".to_string(), DiskPlan::line);
    let options = ServeOptions {
        addr: SocketAddr::new(args.host, args.port),
        api_key: args.api_key.clone(),
        model_name: loaded.plan.model.clone(),
        hosts: args.allow_host.clone(),
        sampling: reply::sampling(&args.sampling),
        max_tokens: args.sampling.max_tokens.unwrap_or(usize::MAX),
        ..ServeOptions::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the threads of the server")?;
    let graceful = house.interrupt.graceful();
    let flag = graceful.flag();
    runtime.block_on(async {
        let server = Server::bind(loaded.engine, options).await?;
        term::note(&format!("{cached}; {disk}"));
        term::note(&format!("serving at http://{}/v1 (Ctrl-C stops)", server.local_addr()));
        server
            .run(async move {
                while !flag.load(Ordering::Relaxed) {
                    tokio::time::sleep(LOOK).await;
                }
            })
            .await
    })?;
    term::note("stopped");
    Ok(exit::OK)
}
