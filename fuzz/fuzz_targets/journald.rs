//! journald: the entries, read by the rules of the native protocol, give back every byte of the container, line by
//! line, whatever the chunks, the names and the labels; what journald does not take is counted.
#![no_main]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::LazyLock;

use conward::log::journald::Journald;
use conward::options::JournalIdentity;
use conward::stream::Stream;
use conward_fuzz::Dice;
use libfuzzer_sys::fuzz_target;

/// The receiving end; it lies in the scratch directory of the run.
static JOURNAL: LazyLock<(PathBuf, UnixDatagram)> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("journal-{}", std::process::id()));
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_nonblocking(true).expect("a socket that does not block");
    (path, socket)
});

/// Lines for which an unread socket has room under the usual limit of 10 datagrams.
const ROOM: usize = 8;

fuzz_target!(|data: &[u8]| {
    let (path, socket) = &*JOURNAL;
    receive(socket);
    let mut dice = Dice(data);
    let shape = dice.byte();
    let repeat = [1, 1, 7, 200][dice.below(4)];
    let mut text = |longest| {
        let len = dice.below(longest);
        OsStr::from_bytes(dice.take(len)).to_owned()
    };
    let (cid, tag, name) = (text(20), text(20), text(20));
    let mut label = OsString::from("LABEL_1=");
    label.push(text(20));
    let identity = JournalIdentity {
        tag: (shape & 1 != 0).then(|| tag.clone()),
        labels: vec![label],
        mark_partial: shape & 2 != 0,
        parse_priority: shape & 4 != 0,
    };
    let name = (shape & 8 != 0).then_some(&*name);
    let attentive = shape & 16 == 0;

    let mut sink = Journald::new(path, &cid, name, &identity);
    let (mut said, mut entries) = ([Vec::new(), Vec::new()], Vec::new());
    for (stream, chunk) in dice.chunks() {
        let chunk = chunk.repeat(repeat);
        said[stream.index()].extend_from_slice(&chunk);
        if attentive {
            for part in chunk.split_inclusive(|&byte| byte == b'\n').collect::<Vec<_>>().chunks(ROOM) {
                sink.write(stream, &part.concat());
                entries.extend(receive(socket).into_iter().map(|entry| (stream, entry)));
            }
        } else {
            sink.write(stream, &chunk);
        }
    }
    sink.finish();
    let last = receive(socket);
    let counters = sink.counters();
    let total: usize = said.iter().map(Vec::len).sum();
    assert_eq!(counters.bytes + counters.refused_bytes, total as u64, "every byte is counted");
    if !attentive {
        assert_eq!(counters.entries, last.len() as u64);
        last.iter().for_each(|entry| check_fields(entry, &cid, name, &identity));
        return;
    }
    assert_eq!(counters.refused_entries, 0, "{counters:?}");
    // The end of both streams comes at once; the priority of the unfinished line tells nothing, the order does.
    let mut last = last.into_iter();
    for stream in Stream::ALL {
        let mut line = Lines { rest: &said[stream.index()], priority: None, identity: &identity, stream };
        for (_, entry) in entries.iter().filter(|(of, _)| *of == stream) {
            check_fields(entry, &cid, name, &identity);
            line.take(entry);
        }
        if !line.rest.is_empty() {
            line.take(&last.next().expect("the unfinished line is sent at the end"));
        }
        assert_eq!(line.rest, b"", "{stream:?} is not complete");
    }
    assert!(last.next().is_none(), "something nobody said");
});

/// What a stream said and no entry has told yet.
struct Lines<'a> {
    rest: &'a [u8],
    /// That of the line in which we are.
    priority: Option<u8>,
    identity: &'a JournalIdentity,
    stream: Stream,
}

impl Lines<'_> {
    fn take(&mut self, entry: &Entry) {
        let message = entry.value("MESSAGE").expect("a message");
        let mut prefix = 0;
        let priority = self.priority.unwrap_or_else(|| match self.rest {
            [b'<', digit @ b'0'..=b'7', b'>', ..] if self.identity.parse_priority => {
                prefix = 3;
                digit - b'0'
            }
            _ => [6, 3][self.stream.index()],
        });
        assert_eq!(entry.value("PRIORITY"), Some(&[b'0' + priority][..]));
        self.rest = self.rest[prefix..].strip_prefix(message).expect("the container's own bytes");
        let newline = message.iter().position(|&byte| byte == b'\n');
        if newline.is_some() {
            assert_eq!(newline, Some(message.len() - 1), "one line per entry");
        } else if !self.rest.is_empty() {
            assert!((8192..16384).contains(&(message.len() + prefix)), "a line is cut only if it is long");
        }
        self.priority = newline.is_none().then_some(priority);
        let marked = newline.is_none() && self.identity.mark_partial;
        assert_eq!(entry.value("CONTAINER_PARTIAL_MESSAGE"), marked.then_some(&b"true"[..]));
    }
}

fn check_fields(entry: &Entry, cid: &OsStr, name: Option<&OsStr>, identity: &JournalIdentity) {
    let short = &cid.as_bytes()[..cid.len().min(12)];
    let tag = identity.tag.as_deref().map(OsStr::as_bytes);
    let name = name.map(OsStr::as_bytes);
    assert_eq!(entry.value("CONTAINER_ID_FULL"), Some(cid.as_bytes()));
    assert_eq!(entry.value("CONTAINER_ID"), Some(short));
    assert_eq!(entry.value("CONTAINER_TAG"), tag);
    assert_eq!(entry.value("CONTAINER_NAME"), name);
    assert_eq!(entry.value("SYSLOG_IDENTIFIER"), Some(tag.or(name).unwrap_or(short)));
    assert_eq!(entry.value("LABEL_1"), Some(&identity.labels[0].as_bytes()["LABEL_1=".len()..]));
}

struct Entry(Vec<(String, Vec<u8>)>);

impl Entry {
    /// Reads `KEY=value\n` and `KEY\n`, length, value, `\n` (systemd, "Native Journal Protocol").
    fn parse(mut rest: &[u8]) -> Option<Entry> {
        let mut fields = Vec::new();
        while !rest.is_empty() {
            let at = rest.iter().position(|byte| matches!(byte, b'=' | b'\n'))?;
            let (key, sign) = (&rest[..at], rest[at]);
            rest = &rest[at + 1..];
            let len = if sign == b'=' {
                rest.iter().position(|&byte| byte == b'\n')?
            } else {
                let (len, behind) = rest.split_first_chunk()?;
                rest = behind;
                usize::try_from(u64::from_le_bytes(*len)).ok()?
            };
            let value = rest.get(..len)?.to_vec();
            rest = rest[len..].strip_prefix(b"\n")?;
            let key = std::str::from_utf8(key).ok().filter(|key| !key.is_empty())?;
            fields.push((key.to_owned(), value));
        }
        Some(Entry(fields))
    }

    /// The value of a field that is there once at most.
    fn value(&self, key: &str) -> Option<&[u8]> {
        let mut values = self.0.iter().filter(|(name, _)| name == key).map(|(_, value)| &value[..]);
        let value = values.next();
        assert!(values.next().is_none(), "{key} is there twice");
        value
    }
}

/// All entries that have arrived.
fn receive(socket: &UnixDatagram) -> Vec<Entry> {
    let mut buffer = vec![0; 1 << 16];
    let mut entries = Vec::new();
    while let Ok(len) = socket.recv(&mut buffer) {
        entries.push(Entry::parse(&buffer[..len]).expect("a well-formed entry"));
    }
    entries
}
