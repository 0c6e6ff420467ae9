//! From the domain's types to the messages of the CRI.

use std::collections::HashMap;

use k8s_cri::v1::*;

use crate::container::{self, Container};
use crate::image;
use crate::sandbox::{self, Pod};

pub fn image(image: &image::Image) -> Image {
    let (uid, username) = match &image.user {
        // Nobody is named: root.
        None => (Some(Int64Value { value: 0 }), String::new()),
        Some(image::User::Uid(uid)) => (Some(Int64Value { value: i64::from(*uid) }), String::new()),
        Some(image::User::Name(name)) => (None, name.clone()),
    };
    let annotations = HashMap::new();
    Image {
        id: image.id.clone(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        size: image.size,
        uid,
        username,
        spec: Some(ImageSpec { image: image.id.clone(), annotations, ..ImageSpec::default() }),
        pinned: image.pinned,
    }
}

pub fn image_info(image: &image::Image) -> HashMap<String, String> {
    let info = serde_json::json!({
        "id": image.id,
        "layers": image.layers,
        "source": format!("{:?}", image.source),
        "imageSpec": *image.config,
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

pub fn filesystem(usage: &image::Usage) -> FilesystemUsage {
    FilesystemUsage {
        timestamp: crate::state::now(),
        fs_id: Some(FilesystemIdentifier { mountpoint: usage.path.to_string_lossy().into_owned() }),
        used_bytes: number(usage.bytes),
        inodes_used: number(usage.inodes),
    }
}

#[allow(clippy::unnecessary_wraps, reason = "the messages have it so")]
pub fn number(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

pub fn pod_state(pod: &Pod) -> i32 {
    match pod.state().phase {
        sandbox::Phase::Ready => PodSandboxState::SandboxReady as i32,
        sandbox::Phase::Creating | sandbox::Phase::NotReady => PodSandboxState::SandboxNotready as i32,
    }
}

pub fn pod(pod: &Pod) -> PodSandbox {
    let record = &pod.record;
    PodSandbox {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: pod_state(pod),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.handler.clone(),
    }
}

pub fn pod_status(pod: &Pod) -> PodSandboxStatus {
    let record = &pod.record;
    let mut ips = pod.state().addresses.into_iter().map(|address| address.to_string());
    PodSandboxStatus {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: pod_state(pod),
        created_at: record.created_at,
        network: Some(PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| PodIp { ip }).collect(),
        }),
        linux: Some(LinuxPodSandboxStatus { namespaces: Some(Namespace { options: Some(pod.namespaces()) }) }),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.handler.clone(),
    }
}

pub fn pod_info(pod: &Pod) -> HashMap<String, String> {
    let info = serde_json::json!({
        "config": pod.record.config,
        "runtimeHandler": pod.record.handler,
        "cgroupParent": pod.record.cgroup_parent,
        "runDirectory": pod.run_dir(),
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

pub fn container_state(container: &Container) -> i32 {
    use container::Phase;
    let state = match container.state().phase {
        Phase::Creating | Phase::Created => ContainerState::ContainerCreated,
        Phase::Running => ContainerState::ContainerRunning,
        Phase::Exited => ContainerState::ContainerExited,
        Phase::Lost => ContainerState::ContainerUnknown,
    };
    state as i32
}

pub fn container(container: &Container) -> k8s_cri::v1::Container {
    let record = &container.record;
    k8s_cri::v1::Container {
        id: record.id.clone(),
        pod_sandbox_id: record.pod.clone(),
        metadata: record.config.metadata.clone(),
        image: record.config.image.clone(),
        image_ref: record.image_ref.clone(),
        state: container_state(container),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        image_id: record.image_id.clone(),
    }
}

pub fn container_status(container: &Container) -> ContainerStatus {
    let (record, state) = (&container.record, container.state());
    let (reason, exit_code) = container::reason(&state);
    let resources = state.resources.clone().or_else(|| record.config.linux.as_ref()?.resources.clone());
    let (started, finished) = match state.phase {
        container::Phase::Creating | container::Phase::Created => (0, 0),
        _ => (state.started_at, state.finished_at),
    };
    ContainerStatus {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: container_state(container),
        created_at: record.created_at,
        started_at: started,
        finished_at: finished,
        exit_code,
        image: record.config.image.clone(),
        image_ref: record.image_ref.clone(),
        reason: reason.to_owned(),
        message: state.message.clone(),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        mounts: record.config.mounts.clone(),
        log_path: record.log_path.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
        resources: Some(ContainerResources { linux: resources, windows: None }),
        image_id: record.image_id.clone(),
        user: Some(ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: record.uid,
                gid: record.gid,
                supplemental_groups: record.groups.clone(),
            }),
        }),
    }
}

pub fn container_info(container: &Container) -> HashMap<String, String> {
    let state = container.state();
    let spec: serde_json::Value = crate::state::read(&container.bundle().join("config.json")).unwrap_or_default();
    let info = serde_json::json!({
        "sandboxID": container.record.pod,
        "pid": state.pid,
        "bundle": container.bundle(),
        "config": container.record.config,
        "runtimeHandler": container.record.handler,
        "runtimeSpec": spec,
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}
