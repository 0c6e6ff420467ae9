//! Readiness and sockets in systemd's way, with this test as the host's systemd.

use std::{
    io::Read,
    os::unix::net::{UnixDatagram, UnixListener, UnixStream},
    time::{Duration, Instant},
};

use super::{
    Stop, Verdict,
    bed::{Bed, IMAGE, PARK, PATIENCE},
    check, inside,
    processes::eventually,
    rig::failed,
};

pub fn by_monitor(bed: &Bed) -> Verdict {
    let host = host(bed)?;
    bed.podman(&["run", "-d", "--name", "n", "--sdnotify", "conmon", IMAGE])
        .env("NOTIFY_SOCKET", bed.path("n"))
        .ok()?;
    let pid = bed.inspect("n", "{{.State.ConmonPid}}")?;
    let heard = until_ready(bed, &host)?;
    check!(heard == [format!("MAINPID={pid}"), "READY=1".into()], "the monitor is {pid}, but the host heard {heard:?}");
    Ok(())
}

/// podman tells the main pid, the monitor passes on what the container says, and only what it may say.
pub fn by_container(bed: &Bed) -> Verdict {
    let host = host(bed)?;
    let script = format!("sleep 1; {} {} notify MAINPID=1 READY=1; {PARK}", inside::PATH, inside::WORD);
    let run = ["run", "-d", "--name", "n", "--sdnotify", "container", "-v", &bed.helper()?, IMAGE, "sh", "-c", &script];
    let began = Instant::now();
    bed.podman(&run).env("NOTIFY_SOCKET", bed.path("n")).ok()?;
    let pid = bed.inspect("n", "{{.State.ConmonPid}}")?;
    let heard = until_ready(bed, &host)?;
    check!(heard == [format!("MAINPID={pid}"), "READY=1".into()], "the monitor is {pid}, but the host heard {heard:?}");
    check!(began.elapsed() >= Duration::from_secs(1), "somebody else than the container said READY=1");
    Ok(())
}

/// The listening socket comes through podman, monitor and runtime as the container's descriptor 3; with the container's
/// end it is free again.
pub fn socket_activation(bed: &Bed) -> Verdict {
    let path = bed.path("listen");
    let listener = UnixListener::bind(&path).map_err(|e| failed(&path, &e))?;
    let greet = format!("{} {} greet \"pid $LISTEN_PID of $$, $LISTEN_FDS socket\" 0<&3", inside::PATH, inside::WORD);
    let run = ["run", "-d", "--name", "n", "-v", &bed.helper()?, IMAGE, "sh", "-c", &greet];
    bed.podman(&run).third(listener.into(), true).ok()?;
    let answer = greeting(&path).map_err(|e| failed("asking the activated container", &e))?;
    check!(answer == "pid 1 of 1, 1 socket", "the container answered {answer:?}");
    let code = bed.ok(&["wait", "n"])?;
    check!(code == "0", "the container ended with {code}");
    let free = eventually(bed.left(PATIENCE), || UnixStream::connect(&path).is_err());
    check!(free, "the container has ended, but somebody still listens on its socket");
    Ok(())
}

fn greeting(path: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn host(bed: &Bed) -> Verdict<UnixDatagram> {
    let path = bed.path("n");
    let socket = UnixDatagram::bind(&path).map_err(|e| failed(&path, &e))?;
    socket.set_read_timeout(Some(Duration::from_millis(200))).map_err(|e| failed(&path, &e))?;
    Ok(socket)
}

/// All lines up to READY=1, and what comes in a moment after it.
fn until_ready(bed: &Bed, host: &UnixDatagram) -> Verdict<Vec<String>> {
    let mut heard: Vec<String> = Vec::new();
    let until = Instant::now() + bed.left(PATIENCE);
    let mut buffer = [0; 4096];
    loop {
        match host.recv(&mut buffer) {
            Ok(n) => heard.extend(String::from_utf8_lossy(&buffer[..n]).lines().map(String::from)),
            Err(_) if heard.iter().any(|line| line == "READY=1") => return Ok(heard),
            Err(_) if Instant::now() < until => {}
            Err(e) => return Err(Stop::Failed(format!("no READY=1 came ({e}); heard {heard:?}"))),
        }
    }
}
