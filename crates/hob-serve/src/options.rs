//! What the server may be told, and its limits with their defaults, costs and reasons.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use hob_engine::Sampling;

use crate::error::{Result, ServeError};

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Where to listen; port 0 takes a free one. Anything but loopback needs `api_key`.
    pub addr: SocketAddr,
    /// If set, `/v1/...` demands it as `Authorization: Bearer KEY` or `x-api-key: KEY`.
    pub api_key: Option<String>,
    /// The model's name in replies and in `/v1/models`.
    pub model_name: String,
    /// Host names, besides loopback and the address itself, under which clients may call the server.
    pub hosts: Vec<String>,
    /// Requests that may wait while one is served; one more is answered with 429.
    pub queue: usize,
    /// Sampling where a request does not say otherwise.
    pub sampling: Sampling,
    /// Longest reply where a request does not say otherwise, in tokens; the context bounds it too.
    pub max_tokens: usize,
    pub limits: Limits,
}

impl Default for ServeOptions {
    fn default() -> Self {
        ServeOptions {
            addr: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080),
            api_key: None,
            model_name: "hob".to_owned(),
            hosts: Vec::new(),
            queue: 16,
            sampling: Sampling::default(),
            max_tokens: usize::MAX,
            limits: Limits::default(),
        }
    }
}

/// What a connection may take. No connection lives without progress.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From the first byte of a request (or the start of a connection) to the end of its head: 10 s. A client that
    /// drips bytes holds one of `connections` no longer.
    pub head: Duration,
    /// For the whole body: 30 s.
    pub body: Duration,
    /// Between two requests of a connection: 60 s.
    pub idle: Duration,
    /// Without a byte of the answer accepted: 15 s. A reader that stalls would pin the engine's slot.
    pub write_stall: Duration,
    /// Between two comments of a stream that has nothing to say yet: 10 s. Clients give up on silence.
    pub keep_alive: Duration,
    /// After the order to stop, for the reply being made: 3 s.
    pub grace: Duration,
    /// Connections at once: 64. Each costs at most a head, and a share of the bodies.
    pub connections: usize,
    /// Bytes of a request's head: 64 KiB (at least 8 KiB).
    pub head_bytes: usize,
    /// Bytes of a request's body: 16 MiB, some 4 million tokens. All bodies together hold at most four times this.
    pub body_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            head: Duration::from_secs(10),
            body: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            write_stall: Duration::from_secs(15),
            keep_alive: Duration::from_secs(10),
            grace: Duration::from_secs(3),
            connections: 64,
            head_bytes: 64 << 10,
            body_bytes: 16 << 20,
        }
    }
}

impl ServeOptions {
    /// Checks the options against each other.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(key) = &self.api_key {
            if key.is_empty() {
                return Err(ServeError::Key { found: "an empty one" });
            }
            if key.len() > 1024 {
                return Err(ServeError::Key { found: "a longer one" });
            }
            if !key.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(ServeError::Key { found: "other characters" });
            }
        } else if !self.addr.ip().is_loopback() {
            return Err(ServeError::KeyRequired { addr: self.addr });
        }
        let whole = |field: &'static str, value: usize, low: usize, high: usize| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            let expected = format!("a whole number from {low} to {high}");
            Err(ServeError::Option { field, expected, found: value.to_string() })
        };
        whole("queue", self.queue, 0, 1024)?;
        whole("limits.connections", self.limits.connections, 1, 65_536)?;
        whole("limits.head_bytes", self.limits.head_bytes, 8192, 16 << 20)?;
        whole("limits.body_bytes", self.limits.body_bytes, 1, 1 << 30)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The start matrix: address by key.
    #[test]
    fn leaving_loopback_needs_a_key() {
        let check = |addr: &str, key: Option<&str>| {
            let options = ServeOptions {
                addr: addr.parse().unwrap(),
                api_key: key.map(str::to_owned),
                ..ServeOptions::default()
            };
            options.check()
        };
        for addr in ["127.0.0.1:0", "127.8.8.8:80", "[::1]:0"] {
            assert!(check(addr, None).is_ok(), "{addr}");
            assert!(check(addr, Some("k")).is_ok(), "{addr}");
        }
        for addr in ["0.0.0.0:0", "192.168.1.7:80", "[::]:0", "[2001:db8::1]:80"] {
            assert!(matches!(check(addr, None), Err(ServeError::KeyRequired { .. })), "{addr}");
            assert!(check(addr, Some("k")).is_ok(), "{addr}");
            for bad in ["", "a b", "schlüssel", "x\n", &"x".repeat(1025)] {
                assert!(matches!(check(addr, Some(bad)), Err(ServeError::Key { .. })), "{addr} {bad:?}");
            }
        }
    }

    #[test]
    fn sizes_have_ranges() {
        let named = |change: &dyn Fn(&mut ServeOptions)| {
            let mut options = ServeOptions::default();
            change(&mut options);
            options.check().unwrap_err().to_string()
        };
        assert!(ServeOptions::default().check().is_ok());
        assert!(named(&|o| o.queue = 1025).starts_with("queue"));
        assert!(named(&|o| o.limits.connections = 0).starts_with("limits.connections"));
        assert!(named(&|o| o.limits.head_bytes = 100).starts_with("limits.head_bytes"));
        assert!(named(&|o| o.limits.body_bytes = 0).starts_with("limits.body_bytes"));
    }
}
