//! Every outside fact that sources depend on, in one place, so that nothing else reads the environment.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::foreign::Places;
use crate::home::user_home;

/// Facts about the world outside `HOB_HOME`.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub pip: PipSettings,
    pub net: NetSettings,
    pub places: Places,
}

impl Settings {
    /// From the process environment. Proxies (`HTTPS_PROXY`, `NO_PROXY`, ...) are read by the HTTP client
    /// itself, the package index by pip.
    pub fn from_env() -> Self {
        Self::from_lookup(&|name| std::env::var_os(name))
    }

    /// From any other source of variables.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<OsString>) -> Self {
        Self {
            pip: PipSettings::default(),
            net: NetSettings::from_lookup(lookup),
            places: Places::from_lookup(lookup),
        }
    }
}

/// How pip is called.
#[derive(Clone, Debug)]
pub struct PipSettings {
    /// Python commands, tried in this order until one has pip.
    pub interpreters: Vec<PathBuf>,
    /// pip's own `--timeout`: seconds that one connection may stay silent.
    pub timeout_seconds: u32,
    /// pip is stopped when nothing has grown on disk for this long.
    pub stall: Duration,
}

impl Default for PipSettings {
    fn default() -> Self {
        let names: &[&str] =
            if cfg!(windows) { &["python", "py", "python3"] } else { &["python3", "python"] };
        Self {
            interpreters: names.iter().map(PathBuf::from).collect(),
            timeout_seconds: 10,
            stall: Duration::from_secs(120),
        }
    }
}

/// How the hub is reached.
#[derive(Clone)]
pub struct NetSettings {
    /// Base URL without a trailing slash; `None` is hf-hub's own default, the public hub.
    pub endpoint: Option<String>,
    /// Sent to the endpoint only, never to a host that it redirects to.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`: do not ask the hub at all.
    pub offline: bool,
    /// For one connection. Short, so that an unreachable hub falls through to the next source.
    pub connect_timeout: Duration,
    /// For the whole answer to the one small request that precedes a download.
    pub answer_timeout: Duration,
    /// A connection that delivers nothing for this long counts as broken.
    pub stall_timeout: Duration,
    /// How often a broken download is taken up again without a single new byte.
    pub retries: u32,
    /// Pause before each of these.
    pub retry_pause: Duration,
}

impl Default for NetSettings {
    fn default() -> Self {
        Self {
            endpoint: None,
            token: None,
            offline: false,
            connect_timeout: Duration::from_secs(4),
            answer_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            retries: 3,
            retry_pause: Duration::from_millis(500),
        }
    }
}

impl NetSettings {
    /// `HF_ENDPOINT`, `HF_HUB_OFFLINE`, and the token by the hub's own rules: `HF_TOKEN`, else the file
    /// `HF_TOKEN_PATH`, else `token` in the hub's home; none of them when `HF_HUB_DISABLE_IMPLICIT_TOKEN` is
    /// set.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let text = |name: &str| {
            let value = lookup(name)?.into_string().ok()?.trim().to_owned();
            (!value.is_empty()).then_some(value)
        };
        let flag = |name: &str| {
            text(name).is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"))
        };
        let mut net = Self { offline: flag("HF_HUB_OFFLINE"), ..Self::default() };
        net.endpoint = text("HF_ENDPOINT").map(|endpoint| endpoint.trim_end_matches('/').to_owned());
        if !flag("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            net.token = text("HF_TOKEN").or_else(|| {
                let file = text("HF_TOKEN_PATH")
                    .map(PathBuf::from)
                    .or_else(|| Some(hub_home(lookup)?.join("token")))?;
                let token = std::fs::read_to_string(file).ok()?.trim().to_owned();
                (!token.is_empty()).then_some(token)
            });
        }
        net
    }
}

impl NetSettings {
    /// For messages.
    pub(crate) fn endpoint_name(&self) -> &str {
        self.endpoint.as_deref().unwrap_or("the Hugging Face hub")
    }
}

/// Written by hand so that a token never reaches a log.
impl std::fmt::Debug for NetSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetSettings")
            .field("endpoint", &self.endpoint)
            .field("token_set", &self.token.is_some())
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

/// The Hugging Face home: `HF_HOME`, else `$XDG_CACHE_HOME/huggingface`, else `~/.cache/huggingface`.
pub(crate) fn hub_home(lookup: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name: &str| lookup(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    path("HF_HOME")
        .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
        .or_else(|| Some(user_home(lookup)?.join(".cache").join("huggingface")))
}
