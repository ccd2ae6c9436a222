//! `sekiwake-anomaly-detector`.

fn main() {}
