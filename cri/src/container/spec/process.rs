//! The first process: what runs, as whom, with what environment.

use k8s_cri::v1::{ContainerConfig, LinuxContainerSecurityContext};
use oci_spec::image::ImageConfiguration;
use serde_json::{Value, json};

use super::security::{self, Capabilities};
use super::{Facts, mounts};
use crate::error::{Error, Result};

pub fn process(
    config: &ContainerConfig,
    image: &ImageConfiguration,
    context: &LinuxContainerSecurityContext,
    capabilities: &Capabilities,
    facts: &Facts,
) -> Result<Value> {
    let own = image.config().clone().unwrap_or_default();
    let resources = config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let oom_score_adj = resources.map_or(0, |resources| resources.oom_score_adj);
    let cwd = [config.working_dir.clone(), own.working_dir().clone().unwrap_or_default()];
    let cwd = cwd.into_iter().find(|cwd| !cwd.is_empty()).unwrap_or_default();
    let mut process = json!({
        "terminal": config.tty,
        "args": args(config, &own)?,
        "env": environment(config, own.env().clone().unwrap_or_default(), facts)?,
        "cwd": mounts::clean(&cwd),
        "user": { "uid": facts.user.uid, "gid": facts.user.gid, "additionalGids": facts.user.groups },
        "capabilities": capabilities.object(),
        "noNewPrivileges": context.no_new_privs,
        "oomScoreAdj": facts.least_oom_score_adj.map_or(oom_score_adj, |least| oom_score_adj.max(least)),
    });
    if let Some(profile) = security::apparmor(context, facts)? {
        process["apparmorProfile"] = profile.into();
    }
    if let Some(label) = &facts.labels.process {
        process["selinuxLabel"] = label.clone().into();
    }
    Ok(process)
}

/// A command takes the place of the image's entrypoint and cmd, arguments that of its cmd.
fn args(config: &ContainerConfig, own: &oci_spec::image::Config) -> Result<Vec<String>> {
    let (entrypoint, cmd) = (own.entrypoint().clone().unwrap_or_default(), own.cmd().clone().unwrap_or_default());
    let args: Vec<String> = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => [config.command.clone(), config.args.clone()].concat(),
        (true, false) => [entrypoint, config.args.clone()].concat(),
        (true, true) => [entrypoint, cmd].concat(),
    };
    match args.first().map(String::as_str) {
        None => Err(Error::invalid("Neither config.command nor the image says what to run")),
        Some("") => Err(Error::invalid("The first word of what to run is empty")),
        Some(_) => Ok(args),
    }
}

/// The image's, then the request's in their place or behind them. HOSTNAME is the pod's whatever the image says, and
/// the user's home is its HOME where nobody says anything else.
fn environment(config: &ContainerConfig, image: Vec<String>, facts: &Facts) -> Result<Vec<String>> {
    let mut env = image;
    let put = |env: &mut Vec<String>, key: &str, value: &str| {
        let prefix = format!("{key}=");
        env.retain(|one| !one.starts_with(&prefix));
        env.push(prefix + value);
    };
    put(&mut env, "HOSTNAME", &facts.host_name);
    for pair in &config.envs {
        if pair.key.is_empty() || pair.key.contains(['=', '\0']) || pair.value.contains('\0') {
            return Err(Error::invalid(format!("envs: {:?} cannot be a variable", pair.key)));
        }
        put(&mut env, &pair.key, &pair.value);
    }
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let usual = [("PATH", path), ("HOME", facts.user.home.as_str()), ("TERM", if config.tty { "xterm" } else { "" })];
    for (key, value) in usual.into_iter().filter(|(_, value)| !value.is_empty()) {
        if !env.iter().any(|one| one.split('=').next() == Some(key)) {
            put(&mut env, key, value);
        }
    }
    Ok(env)
}

#[cfg(test)]
mod tests {
    use k8s_cri::v1::KeyValue;

    use super::*;
    use crate::container::spec::User;

    fn variables(envs: &[(&str, &str)], image: &[&str], tty: bool) -> Result<Vec<String>> {
        let envs = envs.iter().map(|&(key, value)| KeyValue { key: key.into(), value: value.into() }).collect();
        let config = ContainerConfig { envs, tty, ..Default::default() };
        let user = User { home: "/home/ann".into(), ..User::default() };
        let facts = Facts { host_name: "pod".into(), user, ..Facts::default() };
        environment(&config, image.iter().map(|&one| one.to_owned()).collect(), &facts)
    }

    #[test]
    fn variables_have_an_order_of_precedence() {
        assert_eq!(variables(&[], &["PATH=/x"], false).unwrap(), ["PATH=/x", "HOSTNAME=pod", "HOME=/home/ann"],);
        assert_eq!(
            variables(&[("A", "2"), ("A", "3")], &["A=1", "AB=1", "HOSTNAME=x", "PATH=", "HOME=/"], true).unwrap(),
            ["AB=1", "PATH=", "HOME=/", "HOSTNAME=pod", "A=3", "TERM=xterm"],
        );
        assert!(variables(&[("HOSTNAME", "mine")], &[], false).unwrap().contains(&"HOSTNAME=mine".to_owned()));
        for bad in [("", "x"), ("A=B", "x"), ("A", "x\0")] {
            assert!(variables(&[bad], &[], false).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn commands_and_arguments_go_before_the_image() {
        let own: oci_spec::image::Config =
            serde_json::from_value(json!({ "Entrypoint": ["e"], "Cmd": ["c"] })).unwrap();
        let seen = |command: &[&str], given: &[&str]| {
            let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
            args(&ContainerConfig { command: words(command), args: words(given), ..Default::default() }, &own)
        };
        assert_eq!(seen(&[], &[]).unwrap(), ["e", "c"]);
        assert_eq!(seen(&[], &["a"]).unwrap(), ["e", "a"]);
        assert_eq!(seen(&["x"], &[]).unwrap(), ["x"]);
        assert_eq!(seen(&["x"], &["a"]).unwrap(), ["x", "a"]);
        assert!(seen(&[""], &[]).is_err());
        assert!(args(&ContainerConfig::default(), &oci_spec::image::Config::default()).is_err());
    }
}
