//! Blocks of headers: a count (u32), then for each header the length and text of its name and of its value; several
//! values of one name are separated by NUL.

use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary::{ADLER32, dictionary};
use super::{Fault, MAX_HEADERS};

/// Names with values, in the order in which they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The first value of a name, whose case means nothing.
    pub fn value(&self, name: &str) -> Option<&str> {
        let (_, values) = self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        values.split('\0').next()
    }

    /// Reads a block that has been inflated.
    pub fn parse(block: &[u8]) -> Result<Headers, Fault> {
        let mut rest = block;
        let count = number(&mut rest)?;
        let mut headers = Vec::new();
        // Each takes eight bytes at least, so a count that lies ends soon.
        for _ in 0..count {
            headers.push((text(&mut rest)?, text(&mut rest)?));
        }
        if rest.is_empty() { Ok(Headers(headers)) } else { Err(Fault::Fields) }
    }

    /// The block, not compressed.
    pub fn block(&self) -> Vec<u8> {
        let mut block = Vec::new();
        block.extend(size(self.0.len()));
        for (name, value) in &self.0 {
            for text in [name, value] {
                block.extend(size(text.len()));
                block.extend(text.bytes());
            }
        }
        block
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Headers {
    fn from(headers: [(&str, &str); N]) -> Headers {
        Headers(headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
    }
}

fn size(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

fn number(rest: &mut &[u8]) -> Result<usize, Fault> {
    let (bytes, after) = rest.split_first_chunk::<4>().ok_or(Fault::Fields)?;
    *rest = after;
    usize::try_from(u32::from_be_bytes(*bytes)).map_err(|_| Fault::Fields)
}

fn text(rest: &mut &[u8]) -> Result<String, Fault> {
    let length = number(rest)?;
    let (bytes, after) = rest.split_at_checked(length).ok_or(Fault::Fields)?;
    *rest = after;
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

/// The compression of one direction.
#[derive(Debug)]
pub struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Inflater {
        Inflater(Decompress::new(true))
    }
}

impl Inflater {
    /// Inflates one block, the next of its connection.
    pub fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, Fault> {
        let mut out = Vec::with_capacity(1024);
        let mut rest = block;
        loop {
            out.reserve(1024);
            let (total, before) = (self.0.total_in(), out.len());
            let status = self.0.decompress_vec(rest, &mut out, FlushDecompress::Sync);
            let read = usize::try_from(self.0.total_in() - total).map_err(|_| Fault::Compression)?;
            rest = rest.get(read..).ok_or(Fault::Compression)?;
            if out.len() > MAX_HEADERS {
                return Err(Fault::Headers);
            }
            match status {
                Ok(Status::StreamEnd) if !rest.is_empty() => return Err(Fault::Compression),
                Ok(Status::StreamEnd) => return Ok(out),
                Ok(_) if rest.is_empty() && out.len() < out.capacity() => return Ok(out),
                // There was room and input, and nothing happened.
                Ok(_) if read == 0 && out.len() == before => return Err(Fault::Compression),
                Ok(_) => {}
                Err(error) if error.needs_dictionary() == Some(ADLER32) => {
                    self.0.set_dictionary(dictionary()).map_err(|_| Fault::Compression)?;
                }
                Err(_) => return Err(Fault::Compression),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;

    fn deflate(context: &mut Compress, block: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(block.len() + 1024);
        context.compress_vec(block, &mut out, FlushCompress::Sync).unwrap();
        out
    }

    fn with_dictionary() -> Compress {
        let mut context = Compress::new(Compression::best(), true);
        context.set_dictionary(dictionary()).unwrap();
        context
    }

    #[test]
    fn one_context_lasts_for_many_blocks() {
        let (mut there, mut here) = (with_dictionary(), Inflater::default());
        let mut lengths = Vec::new();
        for stream in 0..200u32 {
            let headers = Headers::from([("streamtype", "data"), ("port", "8080"), ("requestid", &stream.to_string())]);
            let bytes = deflate(&mut there, &headers.block());
            lengths.push(bytes.len());
            assert_eq!(Headers::parse(&here.inflate(&bytes).unwrap()), Ok(headers));
        }
        assert!(lengths[199] < lengths[0] / 2, "the context is not shared: {lengths:?}");
    }

    #[test]
    fn blocks_from_another_library_are_read() {
        // Python's zlib.compressobj(9, zdict=dictionary) with a sync flush after each block.
        let mut here = Inflater::default();
        let bytes = unhex("78f9e3c6a7c202e50e703a2b294a4dcc851625aca9a0808614cb45a024cc646100000000ffff");
        let headers = Headers::parse(&here.inflate(&bytes).unwrap());
        assert_eq!(headers, Ok(Headers::from([("streamtype", "error"), ("port", "80")])));
        let bytes = unhex("c2aa1054e624a2aa03000000ffff");
        let headers = Headers::parse(&here.inflate(&bytes).unwrap());
        assert_eq!(headers, Ok(Headers::from([("streamtype", "data"), ("port", "80")])));
    }

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn a_bomb_is_refused() {
        let bytes = deflate(&mut with_dictionary(), &vec![0; 16 << 20]);
        assert!(bytes.len() < MAX_HEADERS);
        assert_eq!(Inflater::default().inflate(&bytes), Err(Fault::Headers));
    }

    #[test]
    fn the_longest_block_passes() {
        let block = vec![7; MAX_HEADERS];
        assert_eq!(Inflater::default().inflate(&deflate(&mut with_dictionary(), &block)), Ok(block));
    }

    #[test]
    fn other_dictionaries_and_noise_are_refused() {
        let mut other = Compress::new(Compression::best(), true);
        other.set_dictionary(b"something else").unwrap();
        assert_eq!(Inflater::default().inflate(&deflate(&mut other, b"abcd")), Err(Fault::Compression));
        assert_eq!(Inflater::default().inflate(b"no zlib at all"), Err(Fault::Compression));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let good = Headers::from([("streamtype", "error")]);
        let block = good.block();
        assert_eq!(Headers::parse(&block), Ok(good));
        for short in 0..block.len() {
            assert_eq!(Headers::parse(&block[..short]), Err(Fault::Fields), "{short}");
        }
        assert_eq!(Headers::parse(&[block.as_slice(), &[0]].concat()), Err(Fault::Fields));
        assert_eq!(Headers::parse(&[0xff; 12]), Err(Fault::Fields));
    }

    #[test]
    fn names_have_no_case_and_values_may_be_several() {
        let headers = Headers::from([("StreamType", "stdin\0other")]);
        assert_eq!((headers.value("streamtype"), headers.value("port")), (Some("stdin"), None));
    }
}
