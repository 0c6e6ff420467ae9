//! Manifests, and lists of them (OCI image-spec, manifest.md and image-index.md; docker's older kinds are alike).

use oci_client::Reference;
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
    OciDescriptor,
};
use serde::Deserialize;

use super::failure::{Failure, Step};
use crate::image::{files, name};

/// Configurations of images that can be run.
pub const RUNNABLE: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

pub const MANIFESTS: [&str; 4] =
    [OCI_IMAGE_INDEX_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE];

/// Either kind of manifest.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub config: Option<OciDescriptor>,
    #[serde(default)]
    pub layers: Vec<OciDescriptor>,
    #[serde(default)]
    pub manifests: Vec<Choice>,
}

#[derive(Deserialize)]
pub struct Choice {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

/// What the manifests of an image are, byte by byte.
pub struct Documents {
    pub list: Option<Vec<u8>>,
    pub manifest: Vec<u8>,
}

impl Documents {
    pub fn digests(&self, reference: &Reference) -> Vec<String> {
        let repository = name::repository(reference);
        let all = self.list.iter().chain(Some(&self.manifest));
        all.map(|document| format!("{repository}@{}", files::digest(document))).collect()
    }
}

/// The manifest of a list that this machine can run.
pub fn choose(choices: &[Choice]) -> Step<String> {
    let (architecture, variants) = machine();
    let fits = |choice: &&Choice| {
        choice.platform.as_ref().is_some_and(|it| it.os == "linux" && it.architecture == architecture)
    };
    let variant = |choice: &Choice| choice.platform.as_ref().map(|it| it.variant.clone()).unwrap_or_default();
    let best = choices
        .iter()
        .filter(fits)
        .filter_map(|choice| variants.iter().position(|known| **known == variant(choice)).map(|rank| (rank, choice)));
    match best.min_by_key(|(rank, _)| *rank) {
        Some((_, choice)) => Ok(choice.digest.clone()),
        None => Err(Failure::fatal(format!("there is no image for linux/{architecture} in the list"))),
    }
}

/// Go's name for this machine, and the variants it runs, the best first.
fn machine() -> (&'static str, &'static [&'static str]) {
    match std::env::consts::ARCH {
        "x86_64" => ("amd64", &["", "v1"]),
        "aarch64" => ("arm64", &["v8", ""]),
        "arm" => ("arm", &["v7", "v6", "v5", ""]),
        "x86" => ("386", &[""]),
        "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", &[""]),
        other => (other, &[""]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_chosen_from_by_platform() {
        let list = |text: &str| choose(&serde_json::from_str::<Vec<Choice>>(text).unwrap()).map_err(|f| f.text);
        let (here, _) = machine();
        let text = format!(
            r#"[{{"digest": "a", "platform": {{"os": "windows", "architecture": "{here}"}}}},
                {{"digest": "b", "platform": {{"os": "unknown", "architecture": "unknown"}}}},
                {{"digest": "c", "platform": {{"os": "linux", "architecture": "{here}"}}}}, {{"digest": "d"}}]"#
        );
        assert_eq!(list(&text), Ok("c".into()));
        let none = list(r#"[{"digest": "a", "platform": {"os": "linux", "architecture": "vax"}}]"#);
        assert!(none.unwrap_err().contains("linux/"));
    }
}
