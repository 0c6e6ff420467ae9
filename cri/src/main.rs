//! `conward-cri`: see conward-cri(8).

fn main() {}
