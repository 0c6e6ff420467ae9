use k8s_cri::v1::{
    Device as Asked, LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, Mount,
};

use super::*;

fn facts() -> Facts {
    Facts {
        oci_version: "1.0.2".into(),
        rootfs: "/run/c/rootfs".into(),
        hostname: "pod".into(),
        host_name: "pod".into(),
        cgroups_path: "/pods/c".into(),
        namespaces: vec![("network", Some("/run/p/net".into())), ("cgroup", None)],
        files: vec![("/etc/hosts", "/run/p/hosts".into())],
        shm: Some("/run/p/shm".into()),
        sources: vec![Source { path: "/data".into(), peers: Peers::Shared }],
        user: User { uid: 1, gid: 2, groups: vec![2, 3], home: "/home".into() },
        bounding: ["CAP_KILL", "CAP_SYS_ADMIN"].map(str::to_owned).into(),
        machine: seccomp::Machine { arch: "x86_64", kernel: (6, 1) },
        devices: vec![Device {
            path: "/dev/x".into(),
            kind: 'b',
            major: 8,
            minor: 1,
            permissions: "r".into(),
            mode: 0o660,
            uid: 0,
            gid: 6,
        }],
        ..Facts::default()
    }
}

fn request(privileged: bool) -> ContainerConfig {
    let security_context = Some(LinuxContainerSecurityContext { privileged, ..Default::default() });
    let resources = Some(LinuxContainerResources { cpu_shares: 5, oom_score_adj: -9, ..Default::default() });
    ContainerConfig {
        command: vec!["run".into()],
        mounts: vec![Mount {
            container_path: "/data/".into(),
            host_path: "/link".into(),
            propagation: 2,
            ..Mount::default()
        }],
        devices: vec![Asked::default()],
        annotations: [("a", "b"), ("run.oci.handler", "krun")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        linux: Some(LinuxContainerConfig { resources, security_context }),
        ..Default::default()
    }
}

fn whole(privileged: bool, facts: &Facts) -> Value {
    config(&request(privileged), &ImageConfiguration::default(), facts).unwrap()
}

#[test]
fn a_plain_container() {
    let mut whole = whole(false, &facts());
    assert!(whole["linux"].as_object_mut().unwrap().remove("maskedPaths").unwrap().as_array().unwrap().len() > 10);
    let mounts = whole["mounts"].take();
    let data = mounts.as_array().unwrap().iter().find(|mount| mount["destination"] == "/data").unwrap();
    assert_eq!(
        *data,
        json!({ "destination": "/data", "type": "bind", "source": "/data", "options": ["rbind", "rshared", "rw"] })
    );
    let golden = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "args": ["run"],
            "env": [
                "HOSTNAME=pod", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/home",
            ],
            "cwd": "/",
            "user": { "uid": 1, "gid": 2, "additionalGids": [2, 3] },
            "capabilities": {
                "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"],
                "inheritable": [], "ambient": [],
            },
            "noNewPrivileges": false,
            "oomScoreAdj": -9,
        },
        "root": { "path": "/run/c/rootfs", "readonly": false },
        "hostname": "pod",
        "mounts": null,
        "annotations": { "a": "b" },
        "linux": {
            "namespaces": [
                { "type": "mount" }, { "type": "network", "path": "/run/p/net" }, { "type": "cgroup" },
            ],
            "cgroupsPath": "/pods/c",
            "resources": {
                "cpu": { "shares": 5 },
                "devices": [
                    { "allow": false, "access": "rwm" },
                    { "allow": true, "type": "b", "major": 8, "minor": 1, "access": "r" },
                ],
            },
            "devices": [
                { "path": "/dev/x", "type": "b", "major": 8, "minor": 1, "fileMode": 0o660, "uid": 0, "gid": 6 },
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "rootfsPropagation": "rshared",
        },
    });
    assert_eq!(whole, golden);
}

#[test]
fn a_privileged_container() {
    let whole = whole(true, &Facts { least_oom_score_adj: Some(3), ..facts() });
    let linux = &whole["linux"];
    assert_eq!(whole["process"]["capabilities"]["effective"], json!(["CAP_KILL", "CAP_SYS_ADMIN"]));
    assert_eq!(whole["process"]["oomScoreAdj"], 3);
    assert_eq!((&linux["maskedPaths"], &linux["readonlyPaths"]), (&json!([]), &json!([])));
    assert_eq!(linux["resources"]["devices"], json!([{ "allow": true, "access": "rwm" }]));
    let sys = whole["mounts"].as_array().unwrap().iter().find(|mount| mount["destination"] == "/sys").unwrap();
    assert!(sys["options"].as_array().unwrap().contains(&json!("rw")));
}

#[test]
fn what_the_host_guards_is_written_down() {
    let labels = Labels { process: Some("p".into()), files: Some("f".into()) };
    let apparmor = Some(vec!["conward-default".to_owned()]);
    let seccomp = Some(("built in".to_owned(), seccomp::BUILT_IN.to_owned()));
    let whole = whole(false, &Facts { labels, apparmor, seccomp, ..facts() });
    assert_eq!((&whole["process"]["selinuxLabel"], &whole["linux"]["mountLabel"]), (&json!("p"), &json!("f")));
    assert_eq!(whole["process"]["apparmorProfile"], "conward-default");
    assert_eq!(whole["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
}
