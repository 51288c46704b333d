//! Who may call: own names only (no page of another site, no rebound name), and the key where one is set. It runs before
//! any body is read, and must not know what is asked for.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::api_error::ApiError;

/// What the guard knows.
pub(crate) struct Guard {
    pub api_key: Option<String>,
    /// More own names, lower case.
    pub hosts: Vec<String>,
}

/// The local end of the connection a request came in on; put there by the server.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Local(pub SocketAddr);

pub(crate) async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let local = request.extensions().get::<Local>().map(|l| l.0);
    let authority = request.uri().authority().cloned();
    let admitted = guard
        .names(request.headers(), authority.as_ref(), local)
        .and_then(|()| guard.key(request.uri().path(), request.headers()));
    match admitted {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

impl Guard {
    /// Host, and Origin if there is one, must be this server's own.
    fn names(
        &self,
        headers: &HeaderMap,
        target: Option<&Authority>,
        local: Option<SocketAddr>,
    ) -> Result<(), ApiError> {
        let refuse = |what: &str| {
            let message = format!(
                "{what} is not a name of this server; call it by localhost or its address, \
                 or allow the name when starting the server"
            );
            Err(ApiError::new(StatusCode::FORBIDDEN, message))
        };
        let Some(host) = single(headers, header::HOST).and_then(parse_authority) else {
            return refuse("the Host header (missing, repeated or malformed)");
        };
        if !self.own(host.host(), local) || target.is_some_and(|t| !self.own(t.host(), local)) {
            return refuse("the Host header");
        }
        if !headers.contains_key(header::ORIGIN) {
            return Ok(());
        }
        let origin = single(headers, header::ORIGIN)
            .and_then(|o| o.strip_prefix("http://").or_else(|| o.strip_prefix("https://")))
            .and_then(parse_authority);
        let Some(origin) = origin else { return refuse("the Origin header") };
        let same = origin.as_str().eq_ignore_ascii_case(host.as_str());
        let port = local.map(|l| l.port());
        let ours = self.own(origin.host(), local) && origin.port_u16().or(Some(80)) == port;
        if same || ours { Ok(()) } else { refuse("the Origin header") }
    }

    fn own(&self, host: &str, local: Option<SocketAddr>) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        if host == "localhost" || self.hosts.contains(&host) {
            return true;
        }
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(&host);
        match bare.parse::<IpAddr>() {
            Ok(ip) => ip.is_loopback() || local.is_some_and(|l| l.ip().to_canonical() == ip.to_canonical()),
            Err(_) => false,
        }
    }

    fn key(&self, path: &str, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(key) = &self.api_key else { return Ok(()) };
        // What a prober may see without a key: that somebody is there.
        if path == "/" || path == "/health" {
            return Ok(());
        }
        let bearer = single(headers, header::AUTHORIZATION).and_then(|v| {
            let (scheme, rest) = v.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| rest.trim())
        });
        let given = bearer.or_else(|| headers.get("x-api-key").and_then(|v| v.to_str().ok()));
        match given {
            Some(given) if same(given.as_bytes(), key.as_bytes()) => Ok(()),
            found => {
                let what = if found.is_some() { "the API key is wrong" } else { "an API key is needed" };
                let message = format!("{what}; send it as 'Authorization: Bearer KEY'");
                let code = Some("invalid_api_key");
                Err(ApiError { code, ..ApiError::new(StatusCode::UNAUTHORIZED, message) })
            }
        }
    }
}

/// The value of a header that occurs exactly once.
fn single(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    value.to_str().ok()
}

/// `host[:port]` without user information.
fn parse_authority(text: &str) -> Option<Authority> {
    let authority: Authority = text.parse().ok()?;
    let plain = authority.as_str().len() == authority.host().len() || authority.port_u16().is_some();
    (plain && !text.contains('@')).then_some(authority)
}

/// Compares in a time that depends on the length of `given` only.
fn same(given: &[u8], key: &[u8]) -> bool {
    let mut difference = given.len() ^ key.len();
    for (i, &g) in given.iter().enumerate() {
        let k = if key.is_empty() { 0 } else { key[i % key.len()] };
        difference |= std::hint::black_box(usize::from(g ^ k));
    }
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(key: Option<&str>) -> Guard {
        Guard { api_key: key.map(str::to_owned), hosts: vec!["box.lan".to_owned()] }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    fn names(pairs: &[(&'static str, &str)]) -> bool {
        let local = "192.168.1.7:8080".parse().unwrap();
        guard(None).names(&headers(pairs), None, Some(local)).is_ok()
    }

    #[test]
    fn only_own_hosts_pass() {
        for host in [
            "localhost",
            "LocalHost:8080",
            "localhost.",
            "127.0.0.1",
            "127.0.0.1:9",
            "127.3.4.5",
            "[::1]",
            "[::1]:8080",
            "192.168.1.7:8080",
            "box.lan",
            "BOX.LAN:8080",
        ] {
            assert!(names(&[("host", host)]), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "evil.localhost.example",
            "192.168.1.8",
            "10.0.0.1",
            "[::2]",
            "127.0.0.1.evil.example",
            "user@localhost",
            "localhost:x",
            "",
            "0.0.0.0",
            "2130706433",
        ] {
            assert!(!names(&[("host", host)]), "{host}");
        }
        assert!(!names(&[]), "a request without a host");
        assert!(!names(&[("host", "localhost"), ("host", "evil.example")]), "two hosts");
    }

    #[test]
    fn an_absolute_target_must_be_own_too() {
        let check = |target: &str| {
            let target: Authority = target.parse().unwrap();
            guard(None).names(&headers(&[("host", "localhost")]), Some(&target), None).is_ok()
        };
        assert!(check("127.0.0.1:1"));
        assert!(!check("evil.example"));
    }

    #[test]
    fn only_own_origins_pass() {
        let origin = |o: &str| names(&[("host", "localhost:8080"), ("origin", o)]);
        for own in [
            "http://localhost:8080",
            "http://127.0.0.1:8080",
            "https://localhost:8080",
            "http://192.168.1.7:8080",
        ] {
            assert!(origin(own), "{own}");
        }
        for foreign in [
            "null",
            "http://evil.example",
            "http://localhost:3000",
            "http://localhost",
            "https://localhost",
            "file://",
            "http://localhost:8080.evil.example",
            "http://evil@localhost:8080",
            "localhost:8080",
            "ftp://localhost:8080",
        ] {
            assert!(!origin(foreign), "{foreign}");
        }
        let forwarded = [("host", "localhost:9000"), ("origin", "http://localhost:9000")];
        assert!(names(&forwarded), "the same name as the host, through a forwarded port");
    }

    #[test]
    fn keys_are_compared_whole() {
        let guard = guard(Some("secret"));
        let try_key = |pairs: &[(&'static str, &str)]| guard.key("/v1/models", &headers(pairs)).is_ok();
        assert!(try_key(&[("authorization", "Bearer secret")]));
        assert!(try_key(&[("authorization", "bearer  secret")]));
        assert!(try_key(&[("x-api-key", "secret")]));
        for wrong in ["secre", "secrets", "Secret", "", "secretsecret"] {
            assert!(!try_key(&[("x-api-key", wrong)]), "{wrong}");
            assert!(!try_key(&[("authorization", &format!("Bearer {wrong}"))]), "{wrong}");
        }
        assert!(!try_key(&[]));
        assert!(!try_key(&[("authorization", "Basic secret")]));
        assert!(guard.key("/health", &headers(&[])).is_ok());
        assert!(guard.key("/v1/chat/completions", &headers(&[])).is_err());
    }
}
