//! Reading image names, `[REGISTRY/]PATH[:TAG][@DIGEST]` (distribution, reference grammar).
//!
//! The libraries' own reader compiles an expression that then takes 12 MB for as long as the program runs.

use oci_client::Reference;

/// Where names without a registry are.
const DOCKER: &str = "docker.io";

/// Characters of a path at most.
const PATH_MAX: usize = 255;

/// Takes a name apart; says what is wrong with it.
pub fn parse(text: &str) -> Result<Reference, &'static str> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(checked(digest, is_digest, "no digest after @")?)),
        None => (text, None),
    };
    // A colon before the last slash is that of a port.
    let tail = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[tail..].find(':').map(|colon| tail + colon) {
        Some(colon) => (&rest[..colon], Some(checked(&rest[colon + 1..], is_tag, "bad tag")?)),
        None => (rest, None),
    };
    let (registry, path) = whole(name);
    checked(&registry, is_registry, "bad registry")?;
    checked(&path, is_path, "bad repository")?;
    Ok(match (tag, digest) {
        (None, None) => Reference::with_tag(registry, path, "latest".to_owned()),
        (Some(tag), None) => Reference::with_tag(registry, path, tag),
        (None, Some(digest)) => Reference::with_digest(registry, path, digest),
        (Some(tag), Some(digest)) => Reference::with_tag_and_digest(registry, path, tag, digest),
    })
}

fn checked(text: &str, is: fn(&str) -> bool, no: &'static str) -> Result<String, &'static str> {
    if is(text) { Ok(text.to_owned()) } else { Err(no) }
}

/// Registry and path with everything that a name leaves out.
fn whole(name: &str) -> (String, String) {
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => (first, path),
        _ => (DOCKER, name),
    };
    let registry = if registry == "index.docker.io" { DOCKER } else { registry };
    match registry == DOCKER && !path.contains('/') {
        true => (registry.to_owned(), format!("library/{path}")),
        false => (registry.to_owned(), path.to_owned()),
    }
}

fn is_registry(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let ends = |label: &str| label.starts_with(alphanumeric) && label.ends_with(alphanumeric);
    let label = |label: &str| ends(label) && label.chars().all(|each| alphanumeric(each) || each == '-');
    host.split('.').all(label)
        && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

fn alphanumeric(each: char) -> bool {
    each.is_ascii_alphanumeric()
}

fn is_path(text: &str) -> bool {
    text.len() <= PATH_MAX && text.split('/').all(is_component)
}

/// Small letters and digits, between them a dot, one or two underscores, or any number of dashes.
fn is_component(text: &str) -> bool {
    let plain = |each: char| each.is_ascii_lowercase() || each.is_ascii_digit();
    let between = |gap: &str| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|byte| byte == b'-');
    text.starts_with(plain) && text.ends_with(plain) && text.split(plain).all(between)
}

fn is_tag(text: &str) -> bool {
    let word = |each: char| alphanumeric(each) || each == '_';
    text.len() <= 128 && text.starts_with(word) && text.chars().all(|each| word(each) || matches!(each, '.' | '-'))
}

fn is_digest(text: &str) -> bool {
    let digits = match text.split_once(':') {
        Some(("sha256", hex)) if hex.len() == 64 => hex,
        Some(("sha384", hex)) if hex.len() == 96 => hex,
        Some(("sha512", hex)) if hex.len() == 128 => hex,
        _ => return false,
    };
    digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The libraries' reader is the judge, except of capital letters that it takes for a registry and then for none.
    #[test]
    fn names_are_read_as_the_libraries_read_them() {
        let hex = "0123456789abcdef".repeat(4);
        let (digest, short) = (format!("a@sha256:{hex}"), format!("a@sha256:{}", &hex[1..]));
        let both = format!("localhost:5000/a/b:v1@sha256:{hex}");
        let long = format!("quay.io/{}", "a".repeat(256));
        let texts = [
            "a",
            "a/b",
            "a/b/c",
            "localhost/a",
            "localhost:5000/a",
            "localhost:5000/a:b",
            "a.b/c",
            "a.b",
            "a/B",
            "A.b/c",
            "docker.io/a",
            "docker.io/a/b",
            "index.docker.io/a",
            "a:1",
            "a:1.2-3_4",
            "a:-1",
            "a:.1",
            "a:",
            "a@",
            ":a",
            "/a",
            "a/",
            "",
            "a//b",
            "a..b",
            "a__b",
            "a___b",
            "a_b",
            "a--b",
            "a---b",
            "a-",
            "-a",
            "a.-b",
            "a-_b",
            "a:1:2",
            "a@b",
            "a@sha256:xyz",
            "host-.io/a",
            "-host.io/a",
            "host:x/a",
            "host:/a",
            "host:12/a",
            "127.0.0.1:1/x:y",
            "Not A Name",
            "a\n",
            "a:b/c",
            "a.b:1",
            &digest,
            &short,
            &both,
            &long,
            &long[..263],
        ];
        for text in texts {
            let (ours, theirs) = (parse(text), text.parse::<Reference>());
            assert_eq!(ours.as_ref().ok(), theirs.as_ref().ok(), "{text:?}: {ours:?}, {theirs:?}");
        }
    }
}
