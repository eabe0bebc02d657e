//! Random and mutated bytes into every parser: an answer or an error, never a panic,
//! and never a wrong yes.

use citadel_ledger::{
    Checkpoint, LogKey, Note, Receipt, Resource, VerifierKey, bundle, leaf_hash, node_hash,
};
use proptest::prelude::*;

fn mutate(good: &[u8], at: usize, new: &[u8], cut: usize) -> Vec<u8> {
    let at = at % (good.len() + 1);
    let end = (at + cut).min(good.len());
    [&good[..at], new, &good[end..]].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Note::parse(&bytes).is_err());
        prop_assert!(Receipt::parse(&bytes).is_err());
        let _ = bundle::decode(&bytes, 3);
        if let Ok(text) = std::str::from_utf8(&bytes) {
            prop_assert!(text.parse::<Checkpoint>().is_err());
            prop_assert!(text.parse::<VerifierKey>().is_err());
            let _ = Resource::from_path(text);
        }
        prop_assert!(LogKey::from_pem("log", &bytes).is_err());
    }

    #[test]
    fn mutated_receipts_say_the_same_or_nothing(
        at in any::<usize>(), new in prop::collection::vec(any::<u8>(), 0..6), cut in 0_usize..6,
    ) {
        let key = LogKey::generate("log").unwrap();
        let keys = std::slice::from_ref(key.verifier());
        let state = Checkpoint {
            origin: "log".into(),
            size: 2,
            root: node_hash(leaf_hash(b"a"), leaf_hash(b"b")),
        };
        let receipt = Receipt {
            entry: b"a".to_vec(),
            index: 0,
            proof: vec![leaf_hash(b"b")],
            checkpoint: state.sign(&[&key]).unwrap(),
        };
        let mutated = mutate(receipt.encode().as_bytes(), at, &new, cut);
        if let Ok(read) = Receipt::parse(&mutated)
            && let Ok(proven) = read.verify(keys)
        {
            prop_assert_eq!(proven, state.clone());
            prop_assert_eq!((read.entry, read.index), (receipt.entry.clone(), receipt.index));
        }
        let note = mutate(receipt.checkpoint.as_bytes(), at, &new, cut);
        if let Ok(opened) = Checkpoint::open(&note, keys) {
            prop_assert_eq!(opened, state);
        }
        let text = key.verifier().to_string();
        if let Ok(text) = String::from_utf8(mutate(text.as_bytes(), at, &new, cut))
            && let Ok(read) = text.parse::<VerifierKey>()
        {
            // A key under another name would have another ID.
            prop_assert_eq!(&read, key.verifier());
        }
    }
}
