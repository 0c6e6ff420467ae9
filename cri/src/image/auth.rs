//! Credentials: what a request brings, or what the file of docker and podman has for a repository.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oci_client::Reference;
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

use super::name;
use crate::error::{Context, Error, Result};

/// How to say to a registry who is asking.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Credentials {
    pub username: String,
    pub password: String,
    /// `USER:PASSWORD` in base64, in place of the two.
    pub auth: String,
    /// A token for the registry itself, in place of all the others.
    pub registry_token: String,
}

/// Secrets stay out of messages.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Credentials {
    /// As the client of the protocol wants them.
    pub(super) fn to_auth(&self) -> Result<RegistryAuth> {
        if !self.registry_token.is_empty() {
            return Ok(RegistryAuth::Bearer(self.registry_token.clone()));
        }
        if !self.username.is_empty() {
            return Ok(RegistryAuth::Basic(self.username.clone(), self.password.clone()));
        }
        if self.auth.is_empty() {
            return Ok(RegistryAuth::Anonymous);
        }
        let bad = || Error::Invalid("Bad credentials: not USER:PASSWORD in base64".to_owned());
        let text = String::from_utf8(STANDARD.decode(self.auth.trim()).map_err(|_| bad())?).map_err(|_| bad())?;
        let (user, password) = text.split_once(':').ok_or_else(bad)?;
        // Written by some with an end mark.
        Ok(RegistryAuth::Basic(user.to_owned(), password.trim_end_matches('\0').to_owned()))
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthFile {
    auths: HashMap<String, Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    registrytoken: String,
}

/// What the file has for a repository: the entry for the longest part of its name.
pub(super) fn from_file(file: &Path, reference: &Reference) -> Result<Credentials> {
    if file.as_os_str().is_empty() {
        return Ok(Credentials::default());
    }
    let text = fs::read(file).context(|| format!("Failed to read {}", file.display()))?;
    let file: AuthFile = serde_json::from_slice(&text).context(|| format!("Bad credentials in {}", file.display()))?;
    Ok(choose(file, reference))
}

fn choose(file: AuthFile, reference: &Reference) -> Credentials {
    let entries: HashMap<String, Entry> = file.auths.into_iter().map(|(key, entry)| (plain_key(&key), entry)).collect();
    let repository = name::repository(reference);
    let mut part = repository.as_str();
    loop {
        if let Some(entry) = entries.get(part) {
            return Credentials {
                auth: entry.auth.clone(),
                registry_token: entry.registrytoken.clone(),
                ..Credentials::default()
            };
        }
        match part.rsplit_once('/') {
            Some((shorter, _)) => part = shorter,
            None => return Credentials::default(),
        }
    }
}

/// `https://index.docker.io/v1/` is what docker writes for its own registry.
fn plain_key(key: &str) -> String {
    let with_path = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let key = match with_path {
        Some(url) => url.split('/').next().unwrap_or_default(),
        None => key.trim_end_matches('/'),
    };
    match key {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(json: &str, image: &str) -> String {
        choose(serde_json::from_str(json).unwrap(), &name::parse(image).unwrap()).auth
    }

    #[test]
    fn the_longest_part_of_the_name_wins() {
        let json = r#"{"auths": {
            "quay.io": {"auth": "registry"}, "quay.io/a/b": {"auth": "repository"},
            "https://index.docker.io/v1/": {"auth": "docker"}, "http://localhost:5000": {"auth": "local"}}}"#;
        for (image, auth) in [
            ("quay.io/a/b:1", "repository"),
            ("quay.io/a/bc", "registry"),
            ("busybox", "docker"),
            ("localhost:5000/x", "local"),
            ("ghcr.io/x/y", ""),
        ] {
            assert_eq!(chosen(json, image), auth, "{image}");
        }
    }

    #[test]
    fn credentials_in_every_form() {
        let auth = |credentials: Credentials| format!("{:?}", credentials.to_auth().map(|_| ()));
        assert_eq!(auth(Credentials::default()), "Ok(())");
        let basic = Credentials { auth: STANDARD.encode("u:p:q"), ..Credentials::default() };
        assert!(matches!(basic.to_auth(), Ok(RegistryAuth::Basic(u, p)) if u == "u" && p == "p:q"));
        let token = Credentials { registry_token: "t".into(), username: "u".into(), ..Credentials::default() };
        assert!(matches!(token.to_auth(), Ok(RegistryAuth::Bearer(t)) if t == "t"));
        assert!(Credentials { auth: "???".into(), ..Credentials::default() }.to_auth().is_err());
        let shown = format!("{:?}", Credentials { password: "secret".into(), ..Credentials::default() });
        assert!(!shown.contains("secret"), "{shown}");
    }
}
