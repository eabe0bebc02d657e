//! What a hostile pod tries on a real node.
