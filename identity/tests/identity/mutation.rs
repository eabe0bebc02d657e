//! Bytes that were good once. The property tests of the other crates' parsers take this
//! file in by its path, so that all parsers face the same.

use proptest::prelude::*;

/// What happens to good bytes.
#[derive(Debug, Clone)]
pub(crate) enum Mutation {
    Set(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Cut(prop::sample::Index, u8),
    Truncate(prop::sample::Index),
    Append(Vec<u8>),
    Repeat(prop::sample::Index, u8),
}

/// Any one of them.
pub(crate) fn mutation() -> impl Strategy<Value = Mutation> {
    let bytes = || prop::collection::vec(any::<u8>(), 1..9);
    prop_oneof![
        (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, to)| Mutation::Set(at, to)),
        (any::<prop::sample::Index>(), bytes()).prop_map(|(at, new)| Mutation::Insert(at, new)),
        (any::<prop::sample::Index>(), 1_u8..20).prop_map(|(at, count)| Mutation::Cut(at, count)),
        any::<prop::sample::Index>().prop_map(Mutation::Truncate),
        bytes().prop_map(Mutation::Append),
        (any::<prop::sample::Index>(), 1_u8..40)
            .prop_map(|(at, count)| Mutation::Repeat(at, count)),
    ]
}

/// Good bytes after these mutations.
pub(crate) fn mutate(good: &[u8], mutations: &[Mutation]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for mutation in mutations {
        let length = bytes.len().max(1);
        match mutation {
            Mutation::Set(at, to) => {
                if let Some(byte) = bytes.get_mut(at.index(length)) {
                    *byte = *to;
                }
            }
            Mutation::Insert(at, new) => {
                let at = at.index(length).min(bytes.len());
                bytes.splice(at..at, new.iter().copied());
            }
            Mutation::Cut(at, count) => {
                let at = at.index(length).min(bytes.len());
                let end = (at + usize::from(*count)).min(bytes.len());
                bytes.drain(at..end);
            }
            Mutation::Truncate(at) => bytes.truncate(at.index(length)),
            Mutation::Append(new) => bytes.extend_from_slice(new),
            Mutation::Repeat(at, count) => {
                let at = at.index(length).min(bytes.len());
                let end = (at + usize::from(*count)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
        }
    }
    bytes
}
