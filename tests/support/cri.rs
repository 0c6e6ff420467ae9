//! A strict reader of CRI logs that shares no code with the monitor: what it cannot read, kubelet may not read either.
//!
//! A record is `STAMP SP STREAM SP TAG SP CONTENT LF`. The stamp is RFC 3339 with nine digits of nanoseconds and a
//! numeric offset; tag `F` means that the container ended the line here, `P` that it goes on in the
//! stream's next record (Kubernetes CRI logging format; readers: kubelet's `logs.go`, podman's `logs` package).

/// One record, borrowed from the log.
#[derive(Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub stamp: &'a str,
    pub stream: &'a str,
    /// Tag `F`: the newline was the container's own.
    pub full: bool,
    pub content: &'a [u8],
}

/// Reads a whole log; any departure from the format is an error that names the record's place in the file.
pub fn records(log: &[u8]) -> Result<Vec<Record<'_>>, String> {
    let mut records = Vec::new();
    let mut rest = log;
    while !rest.is_empty() {
        let offset = log.len() - rest.len();
        let end = rest.iter().position(|&byte| byte == b'\n').ok_or(format!("torn record at {offset}"))?;
        let record = parse(&rest[..end])
            .ok_or_else(|| format!("malformed record at {offset}: {:?}", String::from_utf8_lossy(&rest[..end])))?;
        records.push(record);
        rest = &rest[end + 1..];
    }
    Ok(records)
}

/// What the container wrote to `stream`, as the log tells it.
pub fn content(records: &[Record<'_>], stream: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records.iter().filter(|record| record.stream == stream) {
        bytes.extend_from_slice(record.content);
        if record.full {
            bytes.push(b'\n');
        }
    }
    bytes
}

fn parse(line: &[u8]) -> Option<Record<'_>> {
    // Three blanks end the head; whatever follows, blanks included, is content.
    let mut fields = line.splitn(4, |&byte| byte == b' ');
    let stamp = std::str::from_utf8(fields.next()?).ok().filter(|stamp| is_stamp(stamp))?;
    let stream = match fields.next()? {
        b"stdout" => "stdout",
        b"stderr" => "stderr",
        _ => return None,
    };
    let full = match fields.next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(Record { stamp, stream, full, content: fields.next()? })
}

/// `2026-11-22T01:56:44.196214039+00:00`: 35 characters, ranges checked.
fn is_stamp(stamp: &str) -> bool {
    const SHAPE: &[u8; 35] = b"dddd-dd-ddTdd:dd:dd.ddddddddd+dd:dd";
    let shaped = stamp.len() == SHAPE.len()
        && stamp.bytes().zip(SHAPE).all(|(byte, &shape)| match shape {
            b'd' => byte.is_ascii_digit(),
            b'+' => byte == b'+' || byte == b'-',
            _ => byte == shape,
        });
    let number = |from: usize| stamp[from..from + 2].parse::<u8>().is_ok_and(|number| number < 60);
    let within = |from: usize, low: &str, high: &str| (low..=high).contains(&&stamp[from..from + 2]);
    shaped
        && within(5, "01", "12")
        && within(8, "01", "31")
        && within(11, "00", "23")
        && number(14)
        && (number(17) || &stamp[17..19] == "60")
        && within(30, "00", "23")
        && number(33)
}
