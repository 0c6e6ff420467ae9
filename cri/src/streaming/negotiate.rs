//! Which protocol a request is upgraded to.
//!
//! A client lists what it speaks, best first: for SPDY in lines of `X-Stream-Protocol-Version`, for WebSocket in
//! `Sec-WebSocket-Protocol`; both may be several lines, of several names each. The answer names the first that is
//! spoken here. Without any name the client speaks the first version of all, which had none.

use hyper::HeaderMap;
use hyper::header::{CONNECTION, HeaderName, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};

use super::port_forward::Forwarding;
use super::remote::Transport;
use super::status::Language::{Status, Text};
use super::websocket::Dialect;

/// The header for SPDY's names, in requests and replies.
pub const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// What is spoken here, in a refusal.
pub const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
/// The value of `Upgrade` for SPDY.
pub const SPDY: &str = "SPDY/3.1";

/// Names with what they mean.
type Names<T> = &'static [(&'static str, T)];

const REMOTE_SPDY: Names<Transport> = &[
    ("v4.channel.k8s.io", Transport::Spdy { resize: true, language: Status }),
    ("v3.channel.k8s.io", Transport::Spdy { resize: true, language: Text }),
    ("v2.channel.k8s.io", Transport::Spdy { resize: false, language: Text }),
    ("channel.k8s.io", Transport::Spdy { resize: false, language: Text }),
    ("", Transport::Spdy { resize: false, language: Text }),
];

const REMOTE_WEB: Names<Transport> = &[
    ("v5.channel.k8s.io", web(false, true, Status)),
    ("v4.channel.k8s.io", web(false, false, Status)),
    ("v4.base64.channel.k8s.io", web(true, false, Status)),
    ("channel.k8s.io", web(false, false, Text)),
    ("base64.channel.k8s.io", web(true, false, Text)),
    ("", web(false, false, Text)),
];

const FORWARD_SPDY: Names<Forwarding> = &[("portforward.k8s.io", Forwarding::Spdy), ("", Forwarding::Spdy)];

const FORWARD_WEB: Names<Forwarding> = &[
    ("SPDY/3.1+portforward.k8s.io", Forwarding::Tunnel),
    ("v4.channel.k8s.io", Forwarding::Web { base64: false }),
    ("v4.base64.channel.k8s.io", Forwarding::Web { base64: true }),
];

const fn web(base64: bool, close: bool, language: super::status::Language) -> Transport {
    Transport::Web(Dialect { base64, close, language })
}

/// What was settled.
#[derive(Debug, PartialEq, Eq)]
pub struct Choice<T> {
    pub upgrade: Upgrade,
    /// To be named in the answer, unless it is empty.
    pub name: &'static str,
    pub protocol: T,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upgrade {
    Spdy,
    /// With the key that the answer proves to have read.
    Web {
        key: String,
    },
}

/// Why a request is not upgraded.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It asks for no upgrade that is known.
    Upgrade,
    /// It names protocols, but none of these.
    Protocol { accepted: Vec<&'static str> },
}

/// The protocol for an exec or attach.
pub fn remote(headers: &HeaderMap) -> Result<Choice<Transport>, Refusal> {
    choose(headers, REMOTE_SPDY, REMOTE_WEB)
}

/// The protocol for a port-forward.
pub fn forwarding(headers: &HeaderMap) -> Result<Choice<Forwarding>, Refusal> {
    choose(headers, FORWARD_SPDY, FORWARD_WEB)
}

fn choose<T: Copy>(headers: &HeaderMap, spdy: Names<T>, web: Names<T>) -> Result<Choice<T>, Refusal> {
    let upgrade = upgrade(headers).ok_or(Refusal::Upgrade)?;
    let (header, names) = match upgrade {
        Upgrade::Spdy => (STREAM_PROTOCOL, spdy),
        Upgrade::Web { .. } => (SEC_WEBSOCKET_PROTOCOL, web),
    };
    let mut offered = words(headers, &header);
    if offered.is_empty() {
        offered.push("");
    }
    let known = |offer: &&str| names.iter().find(|(name, _)| name == offer);
    match offered.iter().find_map(known) {
        Some((name, protocol)) => Ok(Choice { upgrade, name, protocol: *protocol }),
        None => {
            let accepted = names.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
            Err(Refusal::Protocol { accepted })
        }
    }
}

fn upgrade(headers: &HeaderMap) -> Option<Upgrade> {
    let says = |header, word: &str| words(headers, &header).iter().any(|one| one.eq_ignore_ascii_case(word));
    if !says(CONNECTION, "upgrade") {
        return None;
    }
    if says(UPGRADE, "websocket") {
        let key = headers.get(SEC_WEBSOCKET_KEY)?.to_str().ok()?;
        return Some(Upgrade::Web { key: key.to_owned() });
    }
    says(UPGRADE, SPDY).then_some(Upgrade::Spdy)
}

/// The values of a header, over all its lines and commas.
fn words<'a>(headers: &'a HeaderMap, header: &HeaderName) -> Vec<&'a str> {
    let lines = headers.get_all(header).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|word| !word.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn spdy(offers: &[&'static str]) -> HeaderMap {
        let mut headers = headers(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")]);
        for offer in offers {
            headers.append(STREAM_PROTOCOL, offer.parse().unwrap());
        }
        headers
    }

    fn socket(offers: &'static str) -> HeaderMap {
        headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "abc"),
            ("sec-websocket-protocol", offers),
        ])
    }

    #[test]
    fn the_first_that_both_speak_over_spdy() {
        let name = |offers: &[&'static str]| remote(&spdy(offers)).unwrap().name;
        assert_eq!(name(&["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io"]), "v4.channel.k8s.io");
        assert_eq!(name(&["v5.channel.k8s.io, v3.channel.k8s.io,v4.channel.k8s.io"]), "v3.channel.k8s.io");
        assert_eq!(name(&["x", "channel.k8s.io"]), "channel.k8s.io");
        assert_eq!(name(&[]), "");
    }

    #[test]
    fn the_first_that_both_speak_over_websocket() {
        assert_eq!(remote(&socket("v5.channel.k8s.io")).unwrap().protocol, web(false, true, Status));
        assert_eq!(remote(&socket("v4.channel.k8s.io, v5.channel.k8s.io")).unwrap().name, "v4.channel.k8s.io");
        assert_eq!(remote(&socket("v4.base64.channel.k8s.io")).unwrap().protocol, web(true, false, Status));
        let tunnel = forwarding(&socket("SPDY/3.1+portforward.k8s.io")).unwrap();
        assert_eq!((tunnel.protocol, tunnel.upgrade), (Forwarding::Tunnel, Upgrade::Web { key: "abc".into() }));
    }

    #[test]
    fn nothing_in_common_lists_what_there_is() {
        let Err(Refusal::Protocol { accepted }) = remote(&spdy(&["v9.channel.k8s.io"])) else { panic!() };
        assert_eq!(accepted[0], "v4.channel.k8s.io");
        assert!(!accepted.contains(&""));
        let Err(Refusal::Protocol { accepted }) = forwarding(&socket("v5.channel.k8s.io")) else { panic!() };
        assert_eq!(accepted[0], "SPDY/3.1+portforward.k8s.io");
    }

    #[test]
    fn no_upgrade_is_refused() {
        let plain = [("upgrade", "SPDY/3.1")];
        let other = [("connection", "upgrade"), ("upgrade", "h2c")];
        let keyless = [("connection", "upgrade"), ("upgrade", "websocket")];
        for lines in [&plain[..], &other[..], &keyless[..], &[]] {
            assert_eq!(remote(&headers(lines)), Err(Refusal::Upgrade));
        }
    }
}
