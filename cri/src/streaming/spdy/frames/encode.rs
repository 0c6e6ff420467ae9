//! Frames to bytes.

use bytes::{BufMut, BytesMut};

use super::dictionary::ADLER32;
use super::{FIN, Headers, VERSION, kind};

/// The first bytes of a zlib stream with a window of 32 KiB and a dictionary.
const ZLIB: [u8; 2] = [0x78, 0x20];
/// An empty block, as a sync flush ends with; Go's library hands out nothing before it.
const FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];
/// The most that a stored block holds.
const STORED: usize = 0xffff;

/// Writes frames.
///
/// A server sends hardly any headers, so their blocks are stored and not compressed: what a peer inflates is the same,
/// and a connection does without the quarter of a megabyte that deflating takes.
#[derive(Debug, Default)]
pub struct Encoder {
    begun: bool,
}

impl Encoder {
    /// Opens a stream, with priority 0.
    pub fn open(&mut self, id: u32, fin: bool, headers: &Headers, out: &mut BytesMut) {
        let block = self.store(headers);
        control(kind::OPEN, fin, 10 + block.len(), out);
        out.put_u32(id);
        out.put_u32(0);
        out.put_u16(0);
        out.put_slice(&block);
    }

    /// Accepts a stream.
    pub fn reply(&mut self, id: u32, headers: &Headers, out: &mut BytesMut) {
        let block = self.store(headers);
        control(kind::REPLY, false, 4 + block.len(), out);
        out.put_u32(id);
        out.put_slice(&block);
    }

    /// Adds headers to a stream.
    pub fn headers(&mut self, id: u32, headers: &Headers, out: &mut BytesMut) {
        let block = self.store(headers);
        control(kind::HEADERS, false, 4 + block.len(), out);
        out.put_u32(id);
        out.put_slice(&block);
    }

    /// Ends a stream in both directions.
    pub fn reset(&mut self, id: u32, code: u32, out: &mut BytesMut) {
        control(kind::RESET, false, 8, out);
        out.put_u32(id);
        out.put_u32(code);
    }

    /// Sends or answers a ping.
    pub fn ping(&mut self, id: u32, out: &mut BytesMut) {
        control(kind::PING, false, 4, out);
        out.put_u32(id);
    }

    /// Announces that streams above `last` are not served.
    pub fn go_away(&mut self, last: u32, code: u32, out: &mut BytesMut) {
        control(kind::GO_AWAY, false, 8, out);
        out.put_u32(last);
        out.put_u32(code);
    }

    /// A piece of a stream, of less than 16 MiB.
    pub fn data(&mut self, id: u32, fin: bool, bytes: &[u8], out: &mut BytesMut) {
        out.put_u32(id);
        out.put_u8(if fin { FIN } else { 0 });
        length(bytes.len(), out);
        out.put_slice(bytes);
    }

    /// The next part of the connection's zlib stream.
    fn store(&mut self, headers: &Headers) -> Vec<u8> {
        let block = headers.block();
        let mut out = Vec::with_capacity(block.len() + 16);
        if !self.begun {
            self.begun = true;
            out.extend(ZLIB);
            out.extend(ADLER32.to_be_bytes());
        }
        for part in block.chunks(STORED) {
            // At most STORED.
            #[allow(clippy::cast_possible_truncation)]
            let length = part.len() as u16;
            out.push(0);
            out.extend(length.to_le_bytes());
            out.extend((!length).to_le_bytes());
            out.extend(part);
        }
        out.extend(FLUSH);
        out
    }
}

fn control(kind: u16, fin: bool, size: usize, out: &mut BytesMut) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    out.put_u8(if fin { FIN } else { 0 });
    length(size, out);
}

fn length(length: usize, out: &mut BytesMut) {
    debug_assert!(length < 1 << 24, "no frame is that long");
    out.put_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()[1..]);
}

#[cfg(test)]
mod tests {
    use super::super::{Decoder, Fault, Frame, Inflater, MAX_CHUNK, MAX_CONTROL};
    use super::*;

    fn decode(bytes: &[u8]) -> Result<Vec<Frame>, Fault> {
        let (mut decoder, mut input, mut frames) = (Decoder::default(), BytesMut::from(bytes), Vec::new());
        while let Some(frame) = decoder.next(&mut input)? {
            frames.push(frame);
        }
        Ok(frames)
    }

    /// One of each kind, and the frames that they are.
    fn samples() -> (BytesMut, Vec<Frame>) {
        let (mut encoder, mut out) = (Encoder::default(), BytesMut::new());
        let headers = Headers::from([("streamtype", "stdin"), ("x", "")]);
        encoder.open(1, false, &headers, &mut out);
        encoder.reply(1, &Headers::default(), &mut out);
        encoder.headers(1, &headers, &mut out);
        encoder.data(1, false, b"hello", &mut out);
        encoder.data(1, true, b"", &mut out);
        encoder.ping(7, &mut out);
        encoder.reset(3, 5, &mut out);
        encoder.go_away(9, 1, &mut out);
        let frames = vec![
            Frame::Open { id: 1, fin: false, one_way: false, headers: headers.clone() },
            Frame::Reply { id: 1, fin: false, headers: Headers::default() },
            Frame::Headers { id: 1, fin: false, headers },
            Frame::Data { id: 1, fin: false, bytes: "hello".into() },
            Frame::Data { id: 1, fin: true, bytes: "".into() },
            Frame::Ping { id: 7 },
            Frame::Reset { id: 3, code: 5 },
            Frame::GoAway { last: 9, code: 1 },
        ];
        (out, frames)
    }

    #[test]
    fn what_is_written_is_read() {
        let (bytes, frames) = samples();
        assert_eq!(decode(&bytes), Ok(frames));
    }

    #[test]
    fn where_bytes_are_cut_changes_nothing() {
        let (bytes, frames) = samples();
        let (mut decoder, mut input, mut seen) = (Decoder::default(), BytesMut::new(), Vec::new());
        for byte in bytes {
            input.put_u8(byte);
            while let Some(frame) = decoder.next(&mut input).unwrap() {
                seen.push(frame);
            }
        }
        // Data came letter by letter.
        let text: Vec<u8> = seen
            .iter()
            .filter_map(|frame| if let Frame::Data { bytes, .. } = frame { Some(bytes.to_vec()) } else { None })
            .flatten()
            .collect();
        assert_eq!(text, b"hello");
        let whole = |frames: Vec<Frame>| -> Vec<Frame> {
            frames.into_iter().filter(|frame| !matches!(frame, Frame::Data { fin: false, .. })).collect()
        };
        assert_eq!(whole(seen), whole(frames));
    }

    #[test]
    fn golden_frames() {
        let (mut encoder, mut out) = (Encoder::default(), BytesMut::new());
        encoder.ping(1, &mut out);
        assert_eq!(out[..], [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]);
        out.clear();
        encoder.data(5, true, b"ab", &mut out);
        assert_eq!(out[..], [0, 0, 0, 5, 1, 0, 0, 2, b'a', b'b']);
        out.clear();
        encoder.reply(3, &Headers::default(), &mut out);
        let zlib = [0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2, 0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
        assert_eq!(out[..12], [0x80, 3, 0, 2, 0, 0, 0, 24, 0, 0, 0, 3]);
        assert_eq!(out[12..], zlib);
        out.clear();
        // The stream of zlib goes on: no second beginning.
        encoder.reply(5, &Headers::default(), &mut out);
        assert_eq!(out[12..], zlib[6..]);
        let mut inflater = Inflater::default();
        assert_eq!(inflater.inflate(&zlib), Ok(vec![0; 4]));
        assert_eq!(inflater.inflate(&zlib[6..]), Ok(vec![0; 4]));
    }

    #[test]
    fn long_headers_are_stored_in_parts() {
        let long = "v".repeat(60_000);
        let headers = Headers::from([("a", long.as_str()), ("b", "c")]);
        let (mut encoder, mut out) = (Encoder::default(), BytesMut::new());
        encoder.open(1, true, &headers, &mut out);
        assert_eq!(decode(&out), Ok(vec![Frame::Open { id: 1, fin: true, one_way: false, headers }]));
    }

    #[test]
    fn long_data_comes_in_chunks() {
        let (mut encoder, mut out) = (Encoder::default(), BytesMut::new());
        let text = vec![b'x'; MAX_CHUNK * 2 + 5];
        encoder.data(1, true, &text, &mut out);
        let frames = decode(&out).unwrap();
        let lengths: Vec<(usize, bool)> = frames
            .iter()
            .map(|frame| match frame {
                Frame::Data { bytes, fin, .. } => (bytes.len(), *fin),
                frame => panic!("{frame:?}"),
            })
            .collect();
        assert_eq!(lengths, [(MAX_CHUNK, false), (MAX_CHUNK, false), (5, true)]);
    }

    #[test]
    fn nonsense_is_named() {
        assert_eq!(decode(&[0x80, 2, 0, 6, 0, 0, 0, 4]), Err(Fault::Version(2)));
        assert_eq!(decode(&[0; 8]), Err(Fault::Stream));
        let length = MAX_CONTROL + 1;
        assert_eq!(decode(&[0x80, 3, 0, 1, 0, 1, 0, 1]), Err(Fault::Long { kind: 1, length }));
        for (kind, most) in [(1u8, 9u8), (2, 3), (3, 7), (6, 3), (7, 7), (8, 3)] {
            for length in 0..=most {
                let mut bytes = vec![0x80, 3, 0, kind, 0, 0, 0, length];
                bytes.extend(vec![1; usize::from(length)]);
                assert_eq!(decode(&bytes), Err(Fault::Short { kind: kind.into(), length: length.into() }));
            }
        }
    }

    #[test]
    fn what_means_nothing_is_passed_over() {
        let settings = [0x80, 3, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0];
        let window = [0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 1];
        let frames = decode(&[&settings[..], &window[..]].concat());
        assert_eq!(frames, Ok(vec![Frame::Ignored { kind: 4 }, Frame::Ignored { kind: 9 }]));
    }

    #[test]
    fn noise_ends_without_a_panic_and_makes_no_bytes() {
        let mut seed = 0x2545_f491_4f6c_dd1du64;
        let mut random = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let (good, _) = samples();
        for round in 0..20_000 {
            // Half of the rounds begin with what is right, so that the noise comes deeper.
            let mut bytes = if round % 2 == 0 { good.to_vec() } else { Vec::new() };
            for _ in 0..random() % 64 {
                bytes.push(random().to_le_bytes()[0]);
            }
            for _ in 0..random() % 4 {
                let at = usize::try_from(random()).unwrap() % bytes.len().max(1);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << (random() % 8);
                }
            }
            let mut data = 0;
            for frame in decode(&bytes).unwrap_or_default() {
                data += if let Frame::Data { bytes, .. } = frame { bytes.len() } else { 0 };
            }
            assert!(data <= bytes.len());
        }
    }
}
