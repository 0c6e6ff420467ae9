use k8s_cri::v1::{Capability, NamespaceOption, UserNamespace};

use super::*;

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn asked(add: &[&str], drop: &[&str], ambient: &[&str]) -> LinuxContainerSecurityContext {
    let capabilities = Some(Capability {
        add_capabilities: words(add),
        drop_capabilities: words(drop),
        add_ambient_capabilities: words(ambient),
    });
    LinuxContainerSecurityContext { capabilities, ..Default::default() }
}

#[test]
fn capabilities_are_added_dropped_and_bounded() {
    let bounding = words(&["CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN"]);
    let all = bounding.clone();
    for (add, drop, ambient, expected, kept) in [
        (&[][..], &[][..], &[][..], words(&["CAP_CHOWN", "CAP_KILL"]), words(&[])),
        (&["sys_admin", "NET_ADMIN"], &["KILL"], &[], words(&["CAP_CHOWN", "CAP_SYS_ADMIN"]), words(&[])),
        (&["CAP_KILL"], &["ALL"], &[], words(&["CAP_KILL"]), words(&[])),
        (&["ALL"], &[], &[], all.clone(), words(&[])),
        (&["ALL"], &["KILL"], &[], words(&["CAP_CHOWN", "CAP_SYS_ADMIN"]), words(&[])),
        (&["ALL"], &["ALL"], &[], words(&[]), words(&[])),
        (&[], &["ALL"], &["KILL"], words(&["CAP_KILL"]), words(&["CAP_KILL"])),
        (&[], &["KILL"], &["KILL", "BPF"], words(&["CAP_CHOWN"]), words(&[])),
    ] {
        let seen = capabilities(&asked(add, drop, ambient), &bounding).unwrap();
        assert_eq!((seen.all, seen.ambient), (expected, kept), "{add:?} {drop:?} {ambient:?}");
    }
    let privileged = LinuxContainerSecurityContext { privileged: true, ..asked(&[], &["ALL"], &[]) };
    assert_eq!(capabilities(&privileged, &bounding).unwrap().all, all);
}

#[test]
fn unknown_capabilities_are_mistakes() {
    for context in [asked(&["FLY"], &[], &[]), asked(&[], &["CAP_FLY"], &[]), asked(&[], &[], &["fly"])] {
        let error = capabilities(&context, &[]).unwrap_err().to_string();
        assert!(error.to_uppercase().contains("FLY"), "{error}");
    }
    assert!(capabilities(&asked(&[], &[], &["ALL"]), &[]).is_err());
}

fn with(kind: ProfileType, name: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind as i32, localhost_ref: name.to_owned() })
}

#[test]
fn seccomp_profiles_are_found() {
    let seen = |profile, privileged| {
        seccomp(&LinuxContainerSecurityContext { seccomp: profile, privileged, ..Default::default() })
    };
    assert_eq!(seen(None, false), Ok(Wanted::Nothing));
    assert_eq!(seen(with(ProfileType::Unconfined, ""), false), Ok(Wanted::Nothing));
    assert_eq!(seen(with(ProfileType::RuntimeDefault, ""), false), Ok(Wanted::Default));
    assert_eq!(seen(with(ProfileType::RuntimeDefault, ""), true), Ok(Wanted::Nothing));
    for name in ["/a/b.json", "localhost//a/b.json"] {
        assert_eq!(seen(with(ProfileType::Localhost, name), false), Ok(Wanted::File("/a/b.json".into())));
    }
    for name in ["", "b.json", "localhost/b.json"] {
        assert!(seen(with(ProfileType::Localhost, name), false).is_err(), "{name}");
    }
    assert!(seen(Some(SecurityProfile { profile_type: 9, localhost_ref: String::new() }), false).is_err());
}

#[test]
#[allow(deprecated)]
fn old_fields_count_where_there_is_no_new_one() {
    let mut context =
        LinuxContainerSecurityContext { seccomp_profile_path: "runtime/default".into(), ..Default::default() };
    assert_eq!(seccomp(&context), Ok(Wanted::Default));
    context.seccomp = with(ProfileType::Unconfined, "");
    assert_eq!(seccomp(&context), Ok(Wanted::Nothing));
    context = LinuxContainerSecurityContext { seccomp_profile_path: "what".into(), ..Default::default() };
    assert!(seccomp(&context).is_err());
}

#[test]
fn apparmor_needs_a_kernel_with_it() {
    let context =
        |profile, privileged| LinuxContainerSecurityContext { apparmor: profile, privileged, ..Default::default() };
    let without = Facts::default();
    let with_it = Facts { apparmor: Some(words(&["mine", "conward-default"])), ..Facts::default() };
    let seen = |profile, facts| apparmor(&context(profile, false), facts);
    assert_eq!(seen(with(ProfileType::RuntimeDefault, ""), &without), Ok(None));
    assert_eq!(seen(with(ProfileType::Unconfined, ""), &without), Ok(None));
    assert!(seen(with(ProfileType::Localhost, "mine"), &without).unwrap_err().to_string().contains("no AppArmor"));
    assert_eq!(seen(with(ProfileType::Localhost, "localhost/mine"), &with_it), Ok(Some("mine".into())));
    assert!(seen(with(ProfileType::Localhost, "other"), &with_it).unwrap_err().to_string().contains("not loaded"));
    assert_eq!(seen(None, &with_it), Ok(Some("conward-default".into())));
    assert_eq!(seen(with(ProfileType::Unconfined, ""), &with_it), Ok(Some("unconfined".into())));
    assert_eq!(apparmor(&context(None, true), &with_it), Ok(None));
}

#[test]
fn selinux_labels_are_whole() {
    let pod = "0001ffff00";
    let mut context = LinuxContainerSecurityContext::default();
    assert_eq!(labels(&context, false, pod), Labels::default());
    let seen = labels(&context, true, pod);
    assert_eq!(seen.process.unwrap(), "system_u:system_r:container_t:s0:c1,c64");
    assert_eq!(seen.files.unwrap(), "system_u:object_r:container_file_t:s0:c1,c64");
    context.selinux_options = Some(SeLinuxOption { r#type: "x_t".into(), level: "s0:c1".into(), ..Default::default() });
    assert_eq!(labels(&context, true, pod).process.unwrap(), "system_u:system_r:x_t:s0:c1");
    let privileged = LinuxContainerSecurityContext { privileged: true, ..Default::default() };
    let seen = labels(&privileged, true, pod);
    assert_eq!((seen.process.unwrap().as_str(), seen.files), ("system_u:system_r:spc_t:s0", None));
}

#[test]
fn silence_is_not_unmasked() {
    let linux = |context| LinuxContainerConfig { security_context: Some(context), resources: None };
    let (masked, read_only) = paths(None);
    assert!(masked.as_array().unwrap().contains(&json!("/proc/kcore")));
    assert!(read_only.as_array().unwrap().contains(&json!("/proc/sys")));
    let plain = LinuxContainerSecurityContext::default();
    assert_eq!(paths(Some(&linux(plain.clone()))), (masked, read_only));
    let some = LinuxContainerSecurityContext { masked_paths: words(&["/x"]), ..plain.clone() };
    assert_eq!(paths(Some(&linux(some))), (json!(["/x"]), json!([])));
    let none = (json!([]), json!([]));
    assert_eq!(paths(Some(&linux(LinuxContainerSecurityContext { privileged: true, ..plain.clone() }))), none);
    let users = Some(UserNamespace { mode: NamespaceMode::Pod as i32, ..Default::default() });
    let modes = Some(NamespaceOption { userns_options: users, ..Default::default() });
    assert_eq!(paths(Some(&linux(LinuxContainerSecurityContext { namespace_options: modes, ..plain }))), none);
}
