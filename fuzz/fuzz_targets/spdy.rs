//! SPDY frames of a client: any bytes, cut anywhere, give the same data, no more of it than was sent, and no panic.
#![no_main]

#[allow(dead_code, unused_imports)]
#[path = "../../cri/src/streaming/spdy/frames/mod.rs"]
mod frames;

use bytes::BytesMut;
use frames::{Decoder, Fault, Frame, MAX_CHUNK, MAX_HEADERS};
use libfuzzer_sys::fuzz_target;

/// Everything that was said, with the pieces of a stream put together.
fn decode<'a>(parts: impl Iterator<Item = &'a [u8]>) -> (Vec<Frame>, Option<Fault>) {
    let (mut decoder, mut input, mut frames) = (Decoder::default(), BytesMut::new(), Vec::new());
    for part in parts {
        input.extend_from_slice(part);
        loop {
            match decoder.next(&mut input) {
                Ok(Some(frame)) => push(&mut frames, frame),
                Ok(None) => break,
                Err(fault) => return (frames, Some(fault)),
            }
        }
    }
    (frames, None)
}

fn push(frames: &mut Vec<Frame>, frame: Frame) {
    match &frame {
        Frame::Data { bytes, .. } => assert!(bytes.len() <= MAX_CHUNK),
        Frame::Open { headers, .. } | Frame::Reply { headers, .. } | Frame::Headers { headers, .. } => {
            // A byte that is no text takes three in its replacement.
            let length: usize = headers.0.iter().map(|(name, value)| name.len() + value.len()).sum();
            assert!(length <= 3 * MAX_HEADERS);
        }
        _ => {}
    }
    match (frames.last_mut(), frame) {
        (Some(Frame::Data { id, fin: last @ false, bytes }), Frame::Data { id: next, fin, bytes: more })
            if *id == next =>
        {
            *bytes = [&bytes[..], &more[..]].concat().into();
            *last = fin;
        }
        (_, frame) => frames.push(frame),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let whole = decode(std::iter::once(bytes));
    assert_eq!(whole, decode(bytes.chunks(1)));
    let data: usize =
        whole.0.iter().map(|frame| if let Frame::Data { bytes, .. } = frame { bytes.len() } else { 0 }).sum();
    assert!(data <= bytes.len());
});
