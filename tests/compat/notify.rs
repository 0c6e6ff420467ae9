//! The relay between the container's notify socket and the host's.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::support::pipes::readable;
use crate::support::scene::{Live, Scene};
use crate::support::suite::{Case, Monitor};
use crate::support::wait::SOON;
use crate::support::{Fail, Outcome, same};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("notify/socket", "8", "notify/notify.sock, mode 0777, before the runtime runs", socket),
        Case::new("notify/after-host-failed", "11 B32", "a failed relay does not make it deaf", host_failed)
            .defect("B32"),
        Case::new("notify/empty-datagram", "11 B33", "an empty datagram does no harm", empty_datagram).defect("B33"),
        Case::new("notify/abstract-host", "11 B34", "an abstract host socket", abstract_host).defect("B34"),
        Case::new("notify/no-mainpid-added", "8", "exactly what was sent: no MAINPID is added", |m| {
            row(m, "READY=1", Some("READY=1"))
        }),
    ];
    for (id, sent, relayed, since) in ROWS {
        let what = relayed.map_or("dropped", |_| "relayed");
        let case = Case::new(&format!("notify/{id}"), "8", what, move |m: &Monitor| row(m, sent, relayed));
        cases.push(if since.is_empty() { case } else { case.since(since) });
    }
    cases
}

/// (id, datagram of the container, datagram at the host, first conmon that does so).
const ROWS: [(&str, &str, Option<&str>, &str); 21] = [
    ("ready", "READY=1", Some("READY=1"), ""),
    ("ready-newline", "READY=1\n", Some("READY=1"), ""),
    ("reloading", "RELOADING=1", Some("RELOADING=1"), "2.1.9"),
    ("stopping", "STOPPING=1", Some("STOPPING=1"), "2.1.9"),
    ("watchdog", "WATCHDOG=1", Some("WATCHDOG=1"), "2.1.9"),
    ("watchdog-trigger", "WATCHDOG=trigger", Some("WATCHDOG=trigger"), "2.1.9"),
    ("status", "STATUS=all is well", Some("STATUS=all is well"), "2.1.9"),
    ("errno", "ERRNO=2", Some("ERRNO=2"), "2.1.9"),
    ("buserror", "BUSERROR=x", Some("BUSERROR=x"), "2.1.9"),
    ("monotonic", "MONOTONIC_USEC=1", Some("MONOTONIC_USEC=1"), "2.1.9"),
    ("several", "READY=1\nMAINPID=1\nSTATUS=up\n", Some("READY=1\nSTATUS=up"), "2.1.9"),
    ("carriage-return", "READY=1\rSTATUS=up", Some("READY=1\nSTATUS=up"), "2.1.9"),
    ("mixed", "MAINPID=1\nREADY=1", Some("READY=1"), ""),
    ("mainpid", "MAINPID=1", None, ""),
    ("fdstore", "FDSTORE=1", None, ""),
    ("watchdog-usec", "WATCHDOG_USEC=1", None, ""),
    ("extend", "EXTEND_TIMEOUT_USEC=1", None, ""),
    ("barrier", "BARRIER=1", None, ""),
    ("ready-blank", "READY=1 ", None, "2.1.9"),
    ("ready-2", "READY=2", None, ""),
    ("garbage", "garbage", None, ""),
];

struct Stage {
    live: Live,
    host: UnixDatagram,
}

fn stage(monitor: &Monitor) -> Outcome<Stage> {
    let mut scene = Scene::create(monitor)?;
    let path = scene.dir.join("host");
    let host = UnixDatagram::bind(&path)?;
    start(scene.set("--sdnotify-socket", path), host)
}

fn start(scene: &mut Scene, host: UnixDatagram) -> Outcome<Stage> {
    std::fs::create_dir(scene.dir.join("b/notify"))?;
    let live = scene.script("go; exit 3")?.start()?;
    live.container()?;
    Ok(Stage { live, host })
}

impl Stage {
    fn send(&self, text: &str) -> Outcome {
        let socket = UnixDatagram::unbound()?;
        socket
            .send_to(text.as_bytes(), self.live.dir.join("b/notify/notify.sock"))
            .map(drop)
            .map_err(|error| Fail::Wrong(format!("cannot send {text:?} to the notify socket: {error}")))
    }

    fn received(&self, limit: Duration) -> Outcome<Option<String>> {
        if !readable(&self.host, limit)? {
            return Ok(None);
        }
        let mut bytes = [0; 4096];
        let count = self.host.recv(&mut bytes)?;
        Ok(Some(String::from_utf8_lossy(&bytes[..count]).into_owned()))
    }

    fn end(&self) -> Outcome {
        self.live.go()?;
        same("daemon's status", self.live.end()?, 3)
    }
}

fn row(monitor: &Monitor, sent: &str, relayed: Option<&str>) -> Outcome {
    let stage = stage(monitor)?;
    stage.send(sent)?;
    // The datagram behind it shows that the first was dropped, not late.
    stage.send("READY=1")?;
    if let Some(text) = relayed {
        same("at the host", stage.received(SOON)?.as_deref(), Some(text))?;
    }
    same("the datagram behind it", stage.received(SOON)?.as_deref(), Some("READY=1"))?;
    same("and nothing more", stage.received(Duration::from_millis(50))?, None)?;
    stage.end()
}

fn socket(monitor: &Monitor) -> Outcome {
    let stage = stage(monitor)?;
    let meta = std::fs::metadata(stage.live.dir.join("b/notify/notify.sock"))?;
    same("mode", meta.mode() & 0o7777, 0o777)?;
    stage.end()
}

fn host_failed(monitor: &Monitor) -> Outcome {
    let mut stage = stage(monitor)?;
    let path = stage.live.dir.join("host");
    std::fs::remove_file(&path)?;
    stage.send("READY=1")?;
    std::thread::sleep(Duration::from_millis(200));
    stage.host = UnixDatagram::bind(&path)?;
    stage.send("READY=1")?;
    same("at the host", stage.received(Duration::from_secs(3))?.as_deref(), Some("READY=1"))?;
    stage.end()
}

fn empty_datagram(monitor: &Monitor) -> Outcome {
    let stage = stage(monitor)?;
    stage.send("")?;
    std::thread::sleep(Duration::from_millis(200));
    stage.send("READY=1")?;
    same("at the host", stage.received(Duration::from_secs(3))?.as_deref(), Some("READY=1"))?;
    stage.end()
}

fn abstract_host(monitor: &Monitor) -> Outcome {
    let name = format!("conward-test-{}", std::process::id());
    let host = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    let mut scene = Scene::create(monitor)?;
    let stage = start(scene.set("--sdnotify-socket", format!("@{name}")), host)?;
    stage.send("READY=1")?;
    same("at the host", stage.received(Duration::from_secs(3))?.as_deref(), Some("READY=1"))?;
    stage.end()
}
