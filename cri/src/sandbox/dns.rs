//! The files by which a pod's containers find names: resolv.conf, hostname, hosts.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use crate::error::{Context, Result};
use crate::idmap::UserMaps;
use crate::state;

/// What a pod asks for (runtime.v1, DNSConfig); nothing at all means the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// Writes the files into a pod's directory.
pub fn write(dir: &Path, dns: &Dns, hostname: &str, on_host: bool) -> Result<()> {
    let resolv = match dns.is_empty() {
        true => fs::read("/etc/resolv.conf").unwrap_or_default(),
        false => dns.resolv_conf().into_bytes(),
    };
    let own = fs::read_to_string("/proc/sys/kernel/hostname").context(|| "Failed to read the host's name")?;
    let hostname = if on_host || hostname.is_empty() { own.trim() } else { hostname };
    let hosts = format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n");
    state::write_bytes(&dir.join("resolv.conf"), &resolv)?;
    state::write_bytes(&dir.join("hostname"), format!("{hostname}\n").as_bytes())?;
    state::write_bytes(&dir.join("hosts"), hosts.as_bytes())
}

/// Lets a pod's containers read the files, and their root write them.
pub fn give(dir: &Path, users: Option<UserMaps>) -> Result<()> {
    let (uid, gid) = users.map_or((0, 0), UserMaps::root);
    for name in ["resolv.conf", "hostname", "hosts"] {
        let path = dir.join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
            .and_then(|()| chown(&path, Some(uid), Some(gid)))
            .context(|| format!("Failed to give {} to the pod", path.display()))?;
    }
    Ok(())
}

impl Dns {
    fn is_empty(&self) -> bool {
        *self == Dns::default()
    }

    /// As resolv.conf(5) has it.
    fn resolv_conf(&self) -> String {
        let mut text = String::new();
        let mut line = |word: &str, values: &str| text.push_str(&format!("{word} {values}\n"));
        for server in &self.servers {
            line("nameserver", server);
        }
        if !self.searches.is_empty() {
            line("search", &self.searches.join(" "));
        }
        if !self.options.is_empty() {
            line("options", &self.options.join(" "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn what_was_asked_for_is_written_and_else_the_hosts() {
        let dir = tempfile::tempdir().unwrap();
        let dns =
            Dns { servers: words(&["10.1.2.3", "::1"]), searches: words(&["a.b", "c"]), options: words(&["ndots:5"]) };
        write(dir.path(), &dns, "some-host", false).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("resolv.conf"), "nameserver 10.1.2.3\nnameserver ::1\nsearch a.b c\noptions ndots:5\n");
        assert_eq!(read("hostname"), "some-host\n");
        assert!(read("hosts").contains("some-host"));
        write(dir.path(), &Dns::default(), "", false).unwrap();
        assert_eq!(read("resolv.conf"), fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    }
}
