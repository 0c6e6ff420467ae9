//! The network interfaces of a pod, and what went through them.

use std::fs::{self, File};
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use crate::error::{Context, Error, Result};

/// What went through an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub received: Traffic,
    pub sent: Traffic,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
}

/// The interfaces in a network namespace but the loopback. There may be no process in it to ask by, so a thread enters
/// it, and is never used for anything else.
pub fn within(netns: &Path) -> Result<Vec<Interface>> {
    let doing = || format!("Failed to read the interfaces in {}", netns.display());
    let file = File::open(netns).context(doing)?;
    let work = move || -> std::io::Result<String> {
        setns(file, CloneFlags::CLONE_NEWNET)?;
        // Not /proc/net: that is the main thread's.
        fs::read_to_string("/proc/thread-self/net/dev")
    };
    let thread = std::thread::Builder::new().name("interfaces".into()).stack_size(STACK).spawn(work).context(doing)?;
    let text = thread.join().map_err(|_| Error::failed(format!("{}: the thread broke off", doing())))?;
    Ok(parse(&text.context(doing)?))
}

const STACK: usize = 128 << 10;

/// Two lines of headings, then `NAME: ` and eight numbers for each direction (proc_pid_net(5)).
fn parse(text: &str) -> Vec<Interface> {
    let traffic = |numbers: &[u64]| {
        Some(Traffic {
            bytes: *numbers.first()?,
            packets: *numbers.get(1)?,
            errors: *numbers.get(2)?,
            dropped: *numbers.get(3)?,
        })
    };
    let interface = |line: &str| {
        // Names may have colons, numbers have none.
        let (name, numbers) = line.rsplit_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().map_while(|number| number.parse().ok()).collect();
        let (received, sent) = (traffic(&numbers)?, traffic(numbers.get(8..)?)?);
        Some(Interface { name: name.trim().to_owned(), received, sent })
    };
    text.lines().skip(2).filter_map(interface).filter(|interface| interface.name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier
    lo: 6225155928 260620 0 0 0 0 0 0 6225155928 260620 0 0 0 0 0 0
  eth0: 10 2    3    4    0     0          0         0  50   6    7    8    0     0       0          0
eth0:1:1 1 1 1 1 1 1 1 2 2 2 2 2 2 2 2
broken: 1 2
";

    #[test]
    fn interfaces_but_the_loopback() {
        let found = parse(TEXT);
        let names: Vec<&str> = found.iter().map(|interface| interface.name.as_str()).collect();
        assert_eq!(names, ["eth0", "eth0:1"]);
        assert_eq!(found[0].received, Traffic { bytes: 10, packets: 2, errors: 3, dropped: 4 });
        assert_eq!(found[0].sent, Traffic { bytes: 50, packets: 6, errors: 7, dropped: 8 });
    }

    #[test]
    fn a_namespace_that_is_none_is_named() {
        let error = within(Path::new("/no/such/ns")).unwrap_err().to_string();
        assert!(error.contains("/no/such/ns"), "{error}");
        assert!(within(Path::new("/proc/self/cmdline")).is_err());
    }
}
