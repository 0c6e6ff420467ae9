//! Mounts that are not bound from where the request says: the files of an image, read-only, in a container of another
//! image, and directories of the host for a pod whose user namespace has other ids.
//!
//! Each is mounted below the container's run directory and bound from there. The store writes it down before it mounts,
//! as it does for the root file system, and unmounts it with that.

use std::path::{Path, PathBuf};

use k8s_cri::v1::{ContainerConfig, Mount};
use serde_json::{Value, json};

use super::{Container, Dirs, host};
use crate::error::{Error, Result};
use crate::idmap::Users;
use crate::image::{self, Store};
use crate::state;

const DIR: &str = "volumes";
const MAPPED: &str = "mapped";

/// What the kubelet promises for files that come from an image.
const OPTIONS: [&str; 3] = ["noexec", "nosuid", "nodev"];

/// Mounts the images that the request names as volumes; and shows others with the ids of the pod; gives back the request
/// with their directories in their place.
pub fn mount(images: &Store, container: &Container, users: Option<&Users>) -> Result<ContainerConfig> {
    let mut config = container.record.config.clone();
    for (number, mount) in config.mounts.iter_mut().enumerate() {
        if let Some(reference) = reference(mount)? {
            let image = images.find(&reference).ok_or_else(|| Error::missing("image", reference))?;
            let target = dir(container).join(number.to_string());
            let how = image::Mount { read_only: true, label: None, users: users.cloned() };
            images.mount(&image, container.id(), &target, &how)?;
            mount.host_path = target.to_string_lossy().into_owned();
            mount.image = None;
            mount.readonly = true;
        } else if let Some(users) = users.filter(|_| !mount.uid_mappings.is_empty()) {
            let (source, target) = (host::source(&mount.host_path)?, container.dirs().run.join(MAPPED));
            let target = target.join(number.to_string());
            images.mount_mapped(&source.path, container.id(), &target, users)?;
            mount.host_path = target.to_string_lossy().into_owned();
        }
    }
    Ok(config)
}

/// Unmounts whatever is still mounted in a container's run directory, which is about to be removed with all that is in it:
/// what lies in a volume is the host's. Needs nothing but the directory.
pub fn release(dirs: &Dirs) -> Result<()> {
    for place in [MAPPED, DIR].map(|name| dirs.run.join(name)) {
        for name in state::entries(&place)? {
            image::detach(&place.join(name))?;
        }
    }
    image::detach(&dirs.rootfs())
}

/// The image of a mount that has one.
fn reference(mount: &Mount) -> Result<Option<String>> {
    let Some(image) = mount.image.as_ref().filter(|image| !image.image.is_empty()) else { return Ok(None) };
    if !mount.host_path.is_empty() {
        let text = format!("Mount {:?}: host_path and image exclude each other", mount.container_path);
        return Err(Error::Invalid(text));
    }
    Ok(Some(image.image.clone()))
}

/// Nothing in a volume is run, or is a device.
pub fn restrict(container: &Container, config: &mut Value) {
    let dir = dir(container);
    for mount in config["mounts"].as_array_mut().into_iter().flatten() {
        let ours = mount["source"].as_str().is_some_and(|source| Path::new(source).starts_with(&dir));
        if let Some(options) = mount["options"].as_array_mut().filter(|_| ours) {
            options.extend(OPTIONS.map(|option| json!(option)));
        }
    }
}

fn dir(container: &Container) -> PathBuf {
    container.dirs().run.join(DIR)
}

#[cfg(test)]
mod tests {
    use k8s_cri::v1::ImageSpec;

    use super::*;

    #[test]
    fn a_volume_is_a_directory_or_an_image() {
        let image = Some(ImageSpec { image: "x".into(), ..ImageSpec::default() });
        let of = |host_path: &str, image| reference(&Mount { host_path: host_path.into(), image, ..Mount::default() });
        assert_eq!(of("", image.clone()), Ok(Some("x".into())));
        assert_eq!(of("/x", Some(ImageSpec::default())), Ok(None));
        assert_eq!(of("/x", None), Ok(None));
        assert!(matches!(of("/x", image), Err(Error::Invalid(_))));
    }
}
