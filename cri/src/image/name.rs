//! Names of images: `busybox` and `docker.io/library/busybox:latest` are the same.

use oci_client::Reference;

use crate::error::{Error, Result};

/// What a client may mean by a text.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted {
    /// `sha256:HEX` or `HEX` in full.
    Id(String),
    /// Names in the order in which they are tried, then perhaps the beginning of an id.
    Names { names: Vec<String>, short_id: Option<String> },
}

/// Reads a name with everything that it leaves out.
pub fn parse(text: &str) -> Result<Reference> {
    super::reference::parse(text).map_err(|error| Error::Invalid(format!("Bad image name {text:?}: {error}")))
}

/// The whole name: registry, repository, and tag or digest.
pub fn whole(reference: &Reference) -> String {
    let repository = repository(reference);
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => format!("{repository}@{digest}"),
        (None, tag) => format!("{repository}:{}", tag.unwrap_or("latest")),
    }
}

/// Registry and repository.
pub fn repository(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
}

/// The whole name for a text; what cannot be read stays as it is.
pub fn normal(text: &str) -> String {
    parse(text).map(|reference| whole(&reference)).unwrap_or_else(|_| text.to_owned())
}

/// What a reference from a client may mean.
pub fn wanted(text: &str) -> Wanted {
    let bare = text.strip_prefix("sha256:").unwrap_or(text);
    let hex = bare.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if hex && bare.len() == 64 {
        return Wanted::Id(format!("sha256:{bare}"));
    }
    let mut names = Vec::new();
    if bare == text {
        names.push(normal(text));
        if let Some(local) = local(text) {
            names.push(local);
        }
    }
    Wanted::Names { names, short_id: (hex && bare.len() >= 3).then(|| format!("sha256:{bare}")) }
}

/// What podman and buildah make of a name without a registry when they build it.
fn local(text: &str) -> Option<String> {
    let first = text.split('/').next()?;
    let has_registry = text.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    (!has_registry).then(|| normal(&format!("localhost/{text}")))
}

/// Whether a name is one of those that must stay.
pub fn pinned(patterns: &[String], tags: &[String]) -> bool {
    let matches = |pattern: &String, tag: &String| match pattern.strip_suffix('*') {
        Some(prefix) => tag.starts_with(prefix),
        None => *tag == *pattern || *tag == normal(pattern),
    };
    patterns.iter().any(|pattern| tags.iter().any(|tag| matches(pattern, tag)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_whole() {
        for (text, name) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("docker.io/busybox:1", "docker.io/library/busybox:1"),
            ("a/b", "docker.io/a/b:latest"),
            ("localhost/b", "localhost/b:latest"),
            ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1"),
            ("quay.io/a/b", "quay.io/a/b:latest"),
        ] {
            assert_eq!(normal(text), name);
        }
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(normal(&format!("b:1@{digest}")), format!("docker.io/library/b@{digest}"));
        assert!(parse("quay.io/UPPER").is_err());
    }

    #[test]
    fn a_text_may_be_a_name_or_an_id() {
        let id = "b".repeat(64);
        assert_eq!(wanted(&id), Wanted::Id(format!("sha256:{id}")));
        assert_eq!(wanted(&format!("sha256:{id}")), Wanted::Id(format!("sha256:{id}")));
        let names = |names: &[&str], short: Option<&str>| Wanted::Names {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            short_id: short.map(str::to_owned),
        };
        assert_eq!(wanted("bad"), names(&["docker.io/library/bad:latest", "localhost/bad:latest"], Some("sha256:bad")));
        assert_eq!(wanted("sha256:bad"), names(&[], Some("sha256:bad")));
        assert_eq!(wanted("quay.io/x/y"), names(&["quay.io/x/y:latest"], None));
    }

    #[test]
    fn pinned_names_and_prefixes() {
        let tags = ["registry.k8s.io/pause:3.9".to_owned()];
        for (pattern, pins) in
            [("registry.k8s.io/pause*", true), ("registry.k8s.io/pause:3.9", true), ("registry.k8s.io/pause", false)]
        {
            assert_eq!(pinned(&[pattern.to_owned()], &tags), pins, "{pattern}");
        }
    }
}
