//! What this very program does when it is mounted into a container: the few things that busybox cannot.
//!
//! `.cargo/config.toml` links it statically, so it runs on an image that has no libraries.

use std::{
    fs::File,
    io::{Read, Write, stdin},
    os::{
        fd::AsFd,
        unix::net::{UnixDatagram, UnixListener},
    },
    process::ExitCode,
};

/// The first argument that turns the runner into the helper.
pub const WORD: &str = "--inside";
/// Where cases mount it.
pub const PATH: &str = "/helper";

pub fn main(words: &[String]) -> ExitCode {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["notify", ref lines @ ..] => notify(lines),
        ["greet", text] => greet(text),
        ["hog", megabytes] => hog(megabytes),
        _ => Err(std::io::Error::other(format!("unknown words {words:?}"))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("helper: {e}");
            ExitCode::from(99)
        }
    }
}

/// One datagram per argument, to where NOTIFY_SOCKET says; `|` stands for a newline.
fn notify(datagrams: &[&str]) -> std::io::Result<()> {
    let to = std::env::var("NOTIFY_SOCKET").map_err(std::io::Error::other)?;
    let socket = UnixDatagram::unbound()?;
    for datagram in datagrams {
        socket.send_to(datagram.replace('|', "\n").as_bytes(), &to)?;
    }
    Ok(())
}

/// Serves one client of the listening socket that is its stdin.
fn greet(text: &str) -> std::io::Result<()> {
    let listener = UnixListener::from(stdin().as_fd().try_clone_to_owned()?);
    let (mut client, _) = listener.accept()?;
    client.write_all(text.as_bytes())
}

/// Takes so many megabytes of memory and touches all of them.
fn hog(megabytes: &str) -> std::io::Result<()> {
    let most: u64 = megabytes.parse().map_err(std::io::Error::other)?;
    let mut taken = Vec::new();
    File::open("/dev/urandom")?.take(most << 20).read_to_end(&mut taken)?;
    println!("survived with {} bytes", taken.len());
    Ok(())
}
