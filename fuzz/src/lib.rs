//! What the fuzz targets share: a container's output made from a fuzzer's bytes, and a reader of CRI logs.

#[path = "../../tests/support/cri.rs"]
pub mod cri;

use conward::stream::Stream;

/// Takes a fuzzer's bytes one at a time; zeros when they have run out.
#[derive(Debug)]
pub struct Dice<'a>(pub &'a [u8]);

impl<'a> Dice<'a> {
    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    /// A number from 0 to 255, below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    /// Up to `len` bytes.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// What is left, in chunks of varying length from either stream. Few bytes rule the cutting, so that an input
    /// stays readable and the fuzzer can change text and cuts apart from each other.
    pub fn chunks(&mut self) -> Vec<(Stream, &'a [u8])> {
        let count = 1 + self.below(8);
        let cuts = self.take(count);
        let mut chunks = Vec::new();
        for &cut in cuts.iter().cycle() {
            let chunk = self.take(1 + usize::from(cut >> 1));
            if chunk.is_empty() {
                break;
            }
            chunks.push((Stream::ALL[usize::from(cut & 1)], chunk));
        }
        chunks
    }
}
