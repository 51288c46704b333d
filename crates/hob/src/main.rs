//! `hob`: flags to a wish, a wish to a plan, a plan to an answer. One module per command; nothing here that another
//! crate would want.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod cache;
mod chat;
mod exit;
mod house;
mod hub;
mod interrupt;
mod lab;
mod plan;
mod quantize;
mod record;
mod reply;
mod run;
mod serve;
mod sessions;
mod show;
mod term;

use std::time::Instant;

use anyhow::Result;
use clap::{CommandFactory, Parser};

use crate::args::{Cli, Command};
use crate::house::House;

fn main() {
    let started = Instant::now();
    let cli = Cli::parse();
    let code = dispatch(cli, started).unwrap_or_else(|problem| {
        let code = exit::code(&problem);
        term::error(&exit::message(&problem));
        code
    });
    std::process::exit(code);
}

fn dispatch(cli: Cli, started: Instant) -> Result<i32> {
    if let Some(Command::Completions(args)) = &cli.command {
        let mut script = Vec::new();
        clap_complete::generate(args.shell, &mut Cli::command(), "hob", &mut script);
        term::print(&String::from_utf8_lossy(&script))?;
        return Ok(exit::OK);
    }
    let house = House::new(started)?;
    match cli.command {
        None => plan::welcome(&house),
        Some(Command::Run(args)) => run::run(&house, &args),
        Some(Command::Chat(args)) => chat::chat(&house, &args),
        Some(Command::Serve(args)) => serve::serve(&house, &args),
        Some(Command::Plan(args)) => plan::plan(&house, &args),
        Some(Command::Bench(args)) => bench::bench(&house, &args),
        Some(Command::Pull(args)) => hub::pull(&house, &args),
        Some(Command::List(args)) => hub::list(&house, &args),
        Some(Command::Rm(args)) => hub::remove(&house, &args),
        Some(Command::Show(args)) => show::show(&house, &args),
        Some(Command::Quantize(args)) => quantize::quantize(&house, &args),
        Some(Command::Cache(args)) => cache::cache(&house, &args),
        Some(Command::Sessions(args)) => sessions::sessions(&house, &args),
        Some(Command::Lab(args)) => lab::lab(&house, &args),
        Some(Command::Completions(_)) => Ok(exit::OK),
    }
}
