//! Bytes to frames.

use bytes::{Buf, BytesMut};

use super::{FIN, Fault, Frame, Headers, Inflater, MAX_CHUNK, MAX_CONTROL, PREFIX, UNIDIRECTIONAL, VERSION, kind};

/// Takes frames from the front of a buffer.
///
/// Data is handed on as it comes, whatever the length of its frame; control frames are waited for whole.
#[derive(Debug, Default)]
pub struct Decoder {
    inflater: Inflater,
    data: Option<Data>,
}

/// A data frame that has not come to its end.
#[derive(Clone, Copy, Debug)]
struct Data {
    id: u32,
    fin: bool,
    left: usize,
}

impl Decoder {
    /// The next frame, or none as long as more bytes are needed.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, Fault> {
        if let Some(data) = self.data {
            return Ok(self.piece(data, input));
        }
        let Some(prefix) = input.first_chunk::<PREFIX>() else { return Ok(None) };
        let head = u32::from_be_bytes([prefix[0], prefix[1], prefix[2], prefix[3]]);
        let flags = prefix[4];
        let length = usize::from(prefix[5]) << 16 | usize::from(prefix[6]) << 8 | usize::from(prefix[7]);
        if head >> 31 == 1 {
            return self.control(head, flags, length, input);
        }
        input.advance(PREFIX);
        if head == 0 {
            return Err(Fault::Stream);
        }
        Ok(self.piece(Data { id: head, fin: flags & FIN != 0, left: length }, input))
    }

    fn piece(&mut self, data: Data, input: &mut BytesMut) -> Option<Frame> {
        let bytes = input.split_to(data.left.min(input.len()).min(MAX_CHUNK)).freeze();
        let left = data.left - bytes.len();
        self.data = (left > 0).then_some(Data { left, ..data });
        // An empty frame says something only when it ends the stream.
        if bytes.is_empty() && left > 0 {
            return None;
        }
        Some(Frame::Data { id: data.id, fin: data.fin && left == 0, bytes })
    }

    fn control(&mut self, head: u32, flags: u8, length: usize, input: &mut BytesMut) -> Result<Option<Frame>, Fault> {
        // Both halves fit: the mask leaves 15 bits, the other cast is of the low 16.
        #[allow(clippy::cast_possible_truncation)]
        let (version, kind) = ((head >> 16 & 0x7fff) as u16, head as u16);
        if version != VERSION {
            return Err(Fault::Version(version));
        }
        if length > MAX_CONTROL {
            return Err(Fault::Long { kind, length });
        }
        if input.len() < PREFIX + length {
            return Ok(None);
        }
        input.advance(PREFIX);
        let body = input.split_to(length);
        self.frame(kind, flags, &body).map(Some)
    }

    fn frame(&mut self, kind: u16, flags: u8, body: &[u8]) -> Result<Frame, Fault> {
        let short = Fault::Short { kind, length: body.len() };
        let fin = flags & FIN != 0;
        let word = |at: usize| -> Result<u32, Fault> {
            let bytes = body.get(at..).and_then(<[u8]>::first_chunk::<4>).ok_or(short)?;
            Ok(u32::from_be_bytes(*bytes))
        };
        // The highest bit of a stream's number is reserved.
        let stream = |at: usize| match word(at)? & 0x7fff_ffff {
            0 => Err(Fault::Stream),
            id => Ok(id),
        };
        Ok(match kind {
            kind::OPEN => {
                let block = body.get(10..).ok_or(short)?;
                let headers = self.headers(block)?;
                Frame::Open { id: stream(0)?, fin, one_way: flags & UNIDIRECTIONAL != 0, headers }
            }
            kind::REPLY => {
                let headers = self.headers(body.get(4..).ok_or(short)?)?;
                Frame::Reply { id: stream(0)?, fin, headers }
            }
            kind::HEADERS => {
                let headers = self.headers(body.get(4..).ok_or(short)?)?;
                Frame::Headers { id: stream(0)?, fin, headers }
            }
            kind::RESET => Frame::Reset { id: stream(0)?, code: word(4)? },
            kind::PING => Frame::Ping { id: word(0)? },
            kind::GO_AWAY => Frame::GoAway { last: word(0)? & 0x7fff_ffff, code: word(4)? },
            kind => Frame::Ignored { kind },
        })
    }

    fn headers(&mut self, block: &[u8]) -> Result<Headers, Fault> {
        Headers::parse(&self.inflater.inflate(block)?)
    }
}
