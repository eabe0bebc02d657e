//! Texts as the index's columns hold them: an index entry of PostgreSQL has at most some
//! 2,700 bytes, and no text has a NUL. What is asked for goes the same way, so that the
//! index still finds all; the entries decide.

use crate::store::SubjectRow;

/// Characters of a column at most: four bytes each, and two columns in one index.
const LONGEST: usize = 256;

const END: char = '\u{10FFFF}';

/// What a column holds of this text.
pub(super) fn column(text: &str) -> String {
    text.chars()
        .take(LONGEST)
        .map(|c| if c == '\0' { '\u{FFFD}' } else { c })
        .collect()
}

/// What the columns hold of a subject.
pub(super) fn columns(subject: SubjectRow) -> SubjectRow {
    SubjectRow {
        trust_domain: column(&subject.trust_domain),
        spiffe_id: column(&subject.spiffe_id),
        certificate_use: subject.certificate_use,
        cluster: column(&subject.cluster),
        namespace: column(&subject.namespace),
        account: column(&subject.account),
        account_uid: column(&subject.account_uid),
        pod: column(&subject.pod),
        pod_uid: column(&subject.pod_uid),
        node: column(&subject.node),
        node_uid: column(&subject.node_uid),
        issuer_key_id: subject.issuer_key_id,
    }
}

/// At or above every column whose text begins with this.
pub(super) fn end_of(prefix: &str) -> String {
    let mut end = column(prefix);
    end.push(END);
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_lies_between_its_prefix_and_the_end_of_it() {
        let long = "x".repeat(300);
        for text in ["spiffe://a/b", "", "a\0b", "ü\u{10FFFE}", &long] {
            let prefixes = text.char_indices().map(|(at, _)| &text[..at]);
            for prefix in prefixes.chain([text]) {
                let found = column(text);
                assert!(column(prefix) <= found, "{prefix:?} of {text:?}");
                assert!(found < end_of(prefix), "{prefix:?} of {text:?}");
            }
            assert!(column(text).len() <= 4 * LONGEST && !column(text).contains('\0'));
        }
    }
}
