//! What the hub announces about a file before it is downloaded: size, SHA-256 and commit.
//!
//! hf-hub 1.0.0 follows the hub's redirect to the content network here, whose answer carries none of the
//! three (fixed upstream after 1.0.0, huggingface/hf-hub#212). So this one HEAD request is ours: it stops at
//! the first answer that has the announcement, and it sends the token to the endpoint only.

use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, ETAG, HeaderMap, LOCATION};
use reqwest::{Client, Url};

use crate::SourceError;
use crate::hub_file::HubFile;
use crate::name::{Sha256Hex, shown};
use crate::settings::NetSettings;

/// Redirects that are followed: a renamed repository or a mirror needs one or two.
const MAX_REDIRECTS: usize = 5;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Announced {
    pub sha256: Sha256Hex,
    pub bytes: u64,
    /// To download from: the commit that the hub resolved the revision to, so that the file cannot change in
    /// between.
    pub revision: String,
}

/// Asks `endpoint`, the [`file_url`] of `source`. `client` must not follow redirects itself.
pub(crate) async fn announced(
    client: &Client,
    endpoint: Url,
    net: &NetSettings,
    source: &HubFile,
) -> Result<Announced, SourceError> {
    let mut url = endpoint.clone();
    for _ in 0..=MAX_REDIRECTS {
        let mut request = client.head(url.clone()).timeout(net.answer_timeout);
        if let Some(token) = net.token.as_ref().filter(|_| url.origin() == endpoint.origin()) {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let answer = request.send().await.map_err(|e| no_answer(net.endpoint_name(), &e))?;
        let status = answer.status();
        let headers = answer.headers();
        if let (true, None, Some(next)) =
            (status.is_redirection(), text(headers, "x-linked-etag"), text(headers, LOCATION.as_str()))
        {
            url = url.join(next).map_err(|e| SourceError::Client {
                why: format!("{url} redirects to an address that is none: {e}"),
            })?;
            continue;
        }
        if !status.is_success() && !status.is_redirection() {
            return Err(refused(url.as_str(), status.as_u16(), net.token.is_some()));
        }
        return read(headers, status.is_success(), &url, source);
    }
    Err(SourceError::Client { why: format!("{endpoint} redirects more than {MAX_REDIRECTS} times") })
}

fn read(headers: &HeaderMap, is_file: bool, url: &Url, source: &HubFile) -> Result<Announced, SourceError> {
    let etag = text(headers, "x-linked-etag").or_else(|| text(headers, ETAG.as_str()));
    let sha256 = etag
        .map(|tag| tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"'))
        .and_then(Sha256Hex::parse)
        .ok_or_else(|| SourceError::NoHash { url: unsigned(url.as_str()) })?;
    // The length of a redirect's own body says nothing about the file.
    let length = || text(headers, CONTENT_LENGTH.as_str()).filter(|_| is_file);
    let size = text(headers, "x-linked-size").or_else(length);
    let bytes = size
        .and_then(|size| size.parse().ok())
        .ok_or_else(|| SourceError::Client { why: format!("{url} announces no size") })?;
    if let Some(expected) = source.sha256.as_deref().filter(|expected| *expected != sha256.as_str()) {
        return Err(SourceError::OtherFile {
            url: unsigned(url.as_str()),
            announced: sha256.to_string(),
            expected: expected.to_owned(),
        });
    }
    let commit =
        text(headers, "x-repo-commit").filter(|c| c.len() == 40 && c.bytes().all(|b| b.is_ascii_hexdigit()));
    Ok(Announced { sha256, bytes, revision: commit.unwrap_or(&source.revision).to_owned() })
}

/// `ENDPOINT/OWNER/NAME/resolve/REVISION/FILE`, every piece percent-encoded.
pub(crate) fn file_url(endpoint: &str, source: &HubFile) -> Result<Url, SourceError> {
    let mut url = base_url(endpoint)?;
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(source.repo.split('/')).push("resolve").push(&source.revision);
        path.extend(source.file.split('/'));
    }
    Ok(url)
}

/// The endpoint as a URL that can be added to.
pub(crate) fn base_url(endpoint: &str) -> Result<Url, SourceError> {
    let bad = |why: String| SourceError::Client {
        why: format!("HF_ENDPOINT `{}` is no URL: {why}", shown(endpoint, 80)),
    };
    let url = Url::parse(endpoint).map_err(|e| bad(e.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad("expected http or https".to_owned()));
    }
    match url.cannot_be_a_base() {
        true => Err(bad("it cannot have a path".to_owned())),
        false => Ok(url),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A URL for messages: a content network's query is a signature, which belongs into no log.
fn unsigned(url: &str) -> String {
    url.split('?').next().unwrap_or(url).to_owned()
}

/// 401 and 403 as advice about the token, everything else as it is.
pub(crate) fn refused(url: &str, status: u16, with_token: bool) -> SourceError {
    match status {
        401 | 403 => SourceError::Refused { url: unsigned(url), status, with_token },
        _ => SourceError::Status { url: unsigned(url), status },
    }
}

/// A transport failure with its innermost cause, which is the part that a user can act on.
pub(crate) fn no_answer(endpoint: &str, error: &reqwest::Error) -> SourceError {
    let why = if error.is_timeout() { "no answer in time".to_owned() } else { innermost(error) };
    SourceError::Unreachable { endpoint: endpoint.to_owned(), why: shown(&why, 200) }
}

pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}
