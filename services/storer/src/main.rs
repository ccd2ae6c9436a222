//! `sekiwake-storer`.

fn main() {}
