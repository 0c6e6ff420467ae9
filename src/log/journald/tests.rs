use std::ffi::OsString;
use std::sync::mpsc;
use std::time::Duration;

use tempfile::TempDir;

use super::fake::{Entry, Journal};
use super::*;

const CID: &str = "0123456789abcdef0123456789abcdef";

/// A container's end and journald's end of one socket.
struct Pair {
    dir: TempDir,
    journal: Journal,
    journald: Journald,
}

impl Pair {
    fn new(identity: &JournalIdentity) -> Pair {
        Pair::named(None, identity)
    }

    fn named(name: Option<&str>, identity: &JournalIdentity) -> Pair {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journald = Journald::new(&path, CID.as_ref(), name.map(OsStr::new), identity);
        Pair { journal: Journal::bind(&path), journald, dir }
    }

    /// Writes, and reads at once: a journal that is waited for takes few entries.
    fn write(&mut self, stream: Stream, data: &[u8]) -> Vec<Entry> {
        self.journald.write(stream, data);
        self.journal.entries()
    }

    fn finish(&mut self) -> Vec<Entry> {
        self.journald.finish();
        assert!(self.journald.lines.iter().all(|line| line.kept.capacity() == 0));
        self.journal.entries()
    }
}

fn plain() -> JournalIdentity {
    JournalIdentity { tag: None, labels: Vec::new(), mark_partial: true, parse_priority: true }
}

fn os(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

fn shown(entry: &Entry) -> Vec<String> {
    entry.fields.iter().map(|(key, value)| format!("{key}={}", value.escape_ascii())).collect()
}

/// Priority and message of each entry.
fn told_apart(entries: &[Entry]) -> Vec<(u8, &[u8])> {
    entries.iter().map(|entry| (entry.value("PRIORITY").unwrap()[0], entry.message())).collect()
}

#[test]
fn fields_and_their_order() {
    let full = format!("CONTAINER_ID_FULL={CID}");
    let id = "CONTAINER_ID=0123456789ab";
    let labels = os(&["A=b", "C_1=", "D=two\nlines"]);
    let tagged = JournalIdentity { tag: Some("tag".into()), labels, ..plain() };
    let table = [
        (None, plain(), vec!["SYSLOG_IDENTIFIER=0123456789ab"], vec![]),
        (Some("name"), plain(), vec!["CONTAINER_NAME=name", "SYSLOG_IDENTIFIER=name"], vec![]),
        (
            Some("name"),
            tagged,
            vec!["CONTAINER_TAG=tag", "CONTAINER_NAME=name", "SYSLOG_IDENTIFIER=tag"],
            vec!["A=b", "C_1=", "D=two\\nlines"],
        ),
        (
            Some("a\nMESSAGE=forged"),
            plain(),
            vec!["CONTAINER_NAME=a\\nMESSAGE=forged", "SYSLOG_IDENTIFIER=a\\nMESSAGE=forged"],
            vec![],
        ),
    ];
    for (name, identity, names, labels) in table {
        let mut pair = Pair::named(name, &identity);
        let complete = pair.write(Stream::Stdout, b"hello\n");
        let want = [&["MESSAGE=hello\\n", &full, "PRIORITY=6", id], &names[..], &labels[..]].concat();
        assert_eq!(shown(&complete[0]), want);
        pair.write(Stream::Stderr, b"rest");
        let partial = pair.finish();
        let mark = ["CONTAINER_PARTIAL_MESSAGE=true"];
        let want = [&["MESSAGE=rest", &full, "PRIORITY=3", id], &names[..], &mark, &labels[..]].concat();
        assert_eq!(shown(&partial[0]), want);
        assert_eq!((complete.len(), partial.len()), (1, 1));
    }
}

#[test]
fn partial_entries_without_mark() {
    let mut pair = Pair::new(&JournalIdentity { mark_partial: false, ..plain() });
    let entries = pair.write(Stream::Stdout, &[b'x'; 9000]);
    assert_eq!(entries[0].message(), [b'x'; 8192]);
    assert_eq!(entries[0].value("CONTAINER_PARTIAL_MESSAGE"), None);
}

/// How a stream is cut: what is written, and the entries with `P` before a partial and `F` before a complete one.
#[test]
fn entries_of_a_stream() {
    let x = |count: usize| "x".repeat(count);
    let table: Vec<(Vec<String>, Vec<String>)> = vec![
        (vec!["a\n".into()], vec!["Fa\n".into()]),
        (vec!["a\nb\n\nc".into()], vec!["Fa\n".into(), "Fb\n".into(), "F\n".into(), "Pc".into()]),
        (vec!["\n".into(), "\n".into()], vec!["F\n".into(), "F\n".into()]),
        (vec!["par".into(), "ti".into(), "al\nx".into()], vec!["Fpartial\n".into(), "Px".into()]),
        (vec!["par".into(), "\n".into()], vec!["Fpar\n".into()]),
        (vec!["".into()], vec![]),
        (vec!["nul\0\0\n\0".into()], vec!["Fnul\0\0\n".into(), "P\0".into()]),
        (vec!["tty\r\n".into()], vec!["Ftty\r\n".into()]),
        (vec!["A=b\nCONTAINER_ID\n".into()], vec!["FA=b\n".into(), "FCONTAINER_ID\n".into()]),
        // The longest line that is never cut.
        (vec![x(8191), "\n".into()], vec![format!("F{}\n", x(8191))]),
        (vec![x(8191)], vec![format!("P{}", x(8191))]),
        (vec![x(8192), "\n".into()], vec![format!("P{}", x(8192)), "F\n".into()]),
        (vec![x(8191), x(1)], vec![format!("P{}", x(8192))]),
        (vec![x(8191), x(8192), "y\n".into()], vec![format!("P{}", x(16_383)), "Fy\n".into()]),
        // Buffered beginning and rest of a line in one entry, however long they are together.
        (vec![x(8191), format!("{}\n", x(8191))], vec![format!("F{}\n", x(16_382))]),
        (
            vec![x(20_000), "\n".into()],
            vec![format!("P{}", x(8192)), format!("P{}", x(8192)), format!("F{}\n", x(3616))],
        ),
        (
            vec![format!("{}\n", x(20_000))],
            vec![format!("P{}", x(8192)), format!("P{}", x(8192)), format!("F{}\n", x(3616))],
        ),
        (vec![x(65_535)], [vec![format!("P{}", x(8192)); 7], vec![format!("P{}", x(8191))]].concat()),
    ];
    for (writes, want) in table {
        let mut pair = Pair::new(&plain());
        let mut entries = Vec::new();
        for write in &writes {
            entries.extend(pair.write(Stream::Stdout, write.as_bytes()));
        }
        entries.extend(pair.finish());
        let show = |entry: &Entry| {
            let mark = if entry.is_partial() { "P" } else { "F" };
            format!("{mark}{}", String::from_utf8(entry.message().to_vec()).unwrap())
        };
        let got: Vec<String> = entries.iter().map(show).collect();
        assert_eq!(got, want, "{:?}", writes.iter().map(String::len).collect::<Vec<_>>());
        let written = writes.iter().map(|write| write.len() as u64).sum();
        let counters = Counters { entries: want.len() as u64, bytes: written, ..Counters::default() };
        assert_eq!(pair.journald.counters(), counters);
    }
}

#[test]
fn priorities() {
    let table: [(&str, u8, &str); 20] = [
        ("<0>zero\n", b'0', "zero\n"),
        ("<1>one\n", b'1', "one\n"),
        ("<2>two\n", b'2', "two\n"),
        ("<3>three\n", b'3', "three\n"),
        ("<4>four\n", b'4', "four\n"),
        ("<5>five\n", b'5', "five\n"),
        ("<6>six\n", b'6', "six\n"),
        ("<7>seven\n", b'7', "seven\n"),
        ("<3>\n", b'3', "\n"),
        ("<5>no newline", b'5', "no newline"),
        ("<5>", b'5', ""),
        ("<3><4>twice\n", b'3', "<4>twice\n"),
        ("<8>eight\n", b'6', "<8>eight\n"),
        ("<>none\n", b'6', "<>none\n"),
        ("<a>letter\n", b'6', "<a>letter\n"),
        ("< 0>blank\n", b'6', "< 0>blank\n"),
        ("<<0>>\n", b'6', "<<0>>\n"),
        ("<03>\n", b'6', "<03>\n"),
        (" <3>later\n", b'6', " <3>later\n"),
        ("<3", b'6', "<3"),
    ];
    for (line, priority, message) in table {
        // In one read, and with a read ending at every place of the line.
        for cut in 0..line.len() {
            let mut pair = Pair::new(&plain());
            let (first, second) = line.split_at(cut);
            let mut entries = pair.write(Stream::Stdout, first.as_bytes());
            entries.extend(pair.write(Stream::Stdout, second.as_bytes()));
            entries.extend(pair.finish());
            assert_eq!(entries.len(), 1);
            assert_eq!(entries[0].value("PRIORITY"), Some(&[priority][..]), "{line:?} at {cut}");
            assert_eq!(entries[0].message(), message.as_bytes(), "{line:?} at {cut}");
            assert_eq!(pair.journald.counters().bytes, line.len() as u64);
        }
        let mut pair = Pair::new(&JournalIdentity { parse_priority: false, ..plain() });
        let mut entries = pair.write(Stream::Stderr, line.as_bytes());
        entries.extend(pair.finish());
        assert_eq!((entries[0].value("PRIORITY"), entries[0].message()), (Some(&b"3"[..]), line.as_bytes()));
    }
}

#[test]
fn a_cut_line_keeps_its_priority_and_the_next_has_its_own() {
    let mut pair = Pair::new(&plain());
    let mut entries = pair.write(Stream::Stdout, format!("<4>{}", "x".repeat(8189)).as_bytes());
    // At the beginning of a piece, but not of a line.
    entries.extend(pair.write(Stream::Stdout, b"<2>middle\n<1>next\nlast\n"));
    entries.extend(pair.write(Stream::Stderr, b"other\n"));
    let long = [b'x'; 8189];
    let want: [(u8, &[u8]); 5] =
        [(b'4', &long), (b'4', b"<2>middle\n"), (b'1', b"next\n"), (b'6', b"last\n"), (b'3', b"other\n")];
    assert_eq!(told_apart(&entries), want);
}

#[test]
fn streams_do_not_mix() {
    let mut pair = Pair::new(&plain());
    pair.write(Stream::Stdout, b"out");
    pair.write(Stream::Stderr, b"err");
    let mut entries = pair.write(Stream::Stdout, b"put\n");
    entries.extend(pair.write(Stream::Stderr, b"or\n"));
    assert_eq!(told_apart(&entries), [(b'6', &b"output\n"[..]), (b'3', b"error\n")]);
    pair.write(Stream::Stderr, b"b");
    pair.write(Stream::Stdout, b"a");
    assert_eq!(told_apart(&pair.finish()), [(b'6', &b"a"[..]), (b'3', b"b")]);
    assert!(pair.finish().is_empty(), "kept text is sent once");
}

/// Any bytes in any pieces: the messages of a stream are its bytes, and only partial ones lack the newline.
#[test]
fn messages_joined_are_what_was_written() {
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random >> 33).unwrap() % below
    };
    for _ in 0..60 {
        let mut pair = Pair::new(&JournalIdentity { parse_priority: false, ..plain() });
        let (mut written, mut entries) = ([Vec::new(), Vec::new()], Vec::new());
        for _ in 0..next(40) {
            let stream = Stream::ALL[next(2)];
            let most = [10, 300, 9000, 20_000][next(4)];
            let mut data = vec![0; next(most)];
            data.fill_with(|| u8::try_from(next(256)).unwrap() | 0x20);
            // Few enough newlines for the queue of any system.
            for _ in 0..next(5).min(data.len()) {
                let place = next(data.len());
                data[place] = b'\n';
            }
            written[stream.index()].extend_from_slice(&data);
            entries.extend(pair.write(stream, &data));
            assert!(pair.journald.lines.iter().all(|line| line.kept.len() <= KEPT_MAX));
        }
        entries.extend(pair.finish());
        for (stream, priority) in [(Stream::Stdout, b"6"), (Stream::Stderr, b"3")] {
            let own = entries.iter().filter(|entry| entry.value("PRIORITY") == Some(priority));
            let messages: Vec<&[u8]> = own.map(Entry::message).collect();
            assert!(messages.concat() == written[stream.index()]);
        }
        for entry in &entries {
            let newlines = entry.message().iter().filter(|&&byte| byte == b'\n').count();
            assert_eq!(newlines, usize::from(!entry.is_partial()));
            assert_eq!(entry.message().last() == Some(&b'\n'), !entry.is_partial());
            assert!(entry.message().len() <= KEPT_MAX + PIECE_MAX);
        }
        assert_eq!(pair.journald.counters().refused_entries, 0);
    }
}

#[test]
fn an_entry_too_large_for_a_datagram_comes_as_sealed_memory() {
    let label = format!("BIG={}", "v".repeat(20 << 20));
    let mut pair = Pair::new(&JournalIdentity { labels: os(&[&label, "SMALL=s"]), ..plain() });
    for line in [&b"one\n"[..], b"two\n"] {
        let entries = pair.write(Stream::Stdout, line);
        assert!(entries.len() == 1 && entries[0].by_memory);
        assert_eq!(entries[0].message(), line);
        assert!(entries[0].value("BIG").unwrap() == &label.as_bytes()[4..]);
        assert_eq!(entries[0].value("SMALL"), Some(&b"s"[..]));
    }
    assert_eq!(pair.journald.counters(), Counters { entries: 2, bytes: 8, ..Counters::default() });
}

#[test]
fn any_number_of_labels() {
    let labels: Vec<String> = (0..1000).map(|index| format!("LABEL_{index}={index}")).collect();
    let labels = labels.iter().map(OsString::from).collect();
    let mut pair = Pair::new(&JournalIdentity { labels, ..plain() });
    let entries = pair.write(Stream::Stdout, b"x\n");
    assert_eq!(entries[0].fields.len(), 5 + 1000);
    assert_eq!(entries[0].value("LABEL_999"), Some(&b"999"[..]));
}

#[test]
fn journald_comes_goes_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let mut journald = Journald::new(&path, CID.as_ref(), None, &plain());
    let mut want = Counters::default();
    let refused = |want: &mut Counters, error| {
        want.refused_entries += 1;
        want.refused_bytes += 5;
        want.last_error = Some(error);
    };

    journald.write(Stream::Stdout, b"lost\n");
    refused(&mut want, Errno::ENOENT);
    assert_eq!(journald.counters(), want);

    for round in 0..2 {
        let journal = Journal::bind(&path);
        journald.write(Stream::Stdout, b"here\n");
        assert_eq!(journal.entries()[0].message(), b"here\n", "round {round}");
        want.entries += 1;
        want.bytes += 5;
        assert_eq!(journald.counters(), want);

        drop(journal);
        journald.write(Stream::Stdout, b"lost\n");
        refused(&mut want, Errno::ECONNREFUSED);
        assert_eq!(journald.counters(), want);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn text_kept_while_journald_was_away_is_not_lost() {
    let mut pair = Pair::new(&plain());
    let path = pair.dir.path().join("socket");
    std::fs::remove_file(&path).unwrap();
    pair.journald.write(Stream::Stdout, b"kept ");
    pair.journal = Journal::bind(&path);
    assert_eq!(pair.write(Stream::Stdout, b"and sent\n")[0].message(), b"kept and sent\n");
}

#[test]
fn an_address_that_cannot_be_refuses_every_entry() {
    let path = Path::new("/").join("x".repeat(200));
    let mut journald = Journald::new(&path, CID.as_ref(), None, &plain());
    journald.write(Stream::Stderr, b"a\nb\nc");
    journald.finish();
    let want =
        Counters { refused_entries: 3, refused_bytes: 5, last_error: Some(Errno::ENAMETOOLONG), ..Counters::default() };
    assert_eq!(journald.counters(), want);
}

#[test]
fn a_journald_that_never_reads_is_not_waited_for() {
    const LINES: u64 = 20_000;
    let mut pair = Pair::new(&plain());
    let (done, result) = mpsc::channel();
    // In a thread of its own, so that waiting would be seen.
    let writer = std::thread::spawn(move || {
        for _ in 0..LINES {
            pair.journald.write(Stream::Stdout, b"123456789\n");
        }
        done.send(()).unwrap();
        pair
    });
    result.recv_timeout(Duration::from_secs(30)).expect("the writer goes on");
    let mut pair = writer.join().unwrap();
    let counters = pair.journald.counters();
    assert_eq!(counters.entries + counters.refused_entries, LINES);
    assert_eq!((counters.bytes, counters.refused_bytes), (10 * counters.entries, 10 * counters.refused_entries));
    assert!(counters.entries > 0 && counters.refused_entries > 0);
    assert_eq!(counters.last_error, Some(Errno::EAGAIN));
    assert_eq!(pair.journal.entries().len() as u64, counters.entries, "what was counted as sent has arrived");
    assert_eq!(pair.write(Stream::Stdout, b"again\n").len(), 1);
}

#[test]
fn a_burst_is_not_lost_to_a_journald_that_reads() {
    const LINES: usize = 20_000;
    let Pair { dir, journal, mut journald } = Pair::new(&plain());
    let reader = std::thread::spawn(move || {
        let mut count = 0;
        // Slower than the writer, but alive.
        while count < LINES {
            let entries = journal.entries().len();
            count += entries;
            if entries == 0 {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    });
    for chunk in vec![b"123456789\n".repeat(100); LINES / 100] {
        journald.write(Stream::Stdout, &chunk);
    }
    let counters = journald.counters();
    assert_eq!((counters.entries, counters.refused_entries), (LINES as u64, 0), "{:?}", counters.last_error);
    reader.join().unwrap();
    drop(dir);
}

/// It takes a few entries and pauses: what it does not take of this piece is lost, but the next one is worth a wait.
#[test]
fn a_slow_journald_is_not_taken_for_a_stuck_one() {
    let Pair { dir, journal, mut journald } = Pair::new(&plain());
    let reader = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        (0..5).for_each(|_| drop(journal.entry()));
        journal
    });
    // More than any queue holds.
    journald.write(Stream::Stdout, &b"\n".repeat(PIECE_MAX));
    let journal = reader.join().unwrap();
    assert!(journald.counters().refused_entries > 0 && !journald.socket.is_stuck() && journald.is_tired());
    journald.begin_turn();
    assert!(!journald.is_tired());
    journald.write(Stream::Stdout, b"\n");
    assert!(journald.socket.is_stuck(), "it took nothing in all of the time");
    journal.entries();
    journald.write(Stream::Stdout, b"\n");
    assert!(!journald.socket.is_stuck());
    drop(dir);
}
