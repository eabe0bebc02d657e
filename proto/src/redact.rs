//! `Debug` of the messages that carry private keys or tokens: it shows what can be
//! shown and never the secret.

use std::fmt;

use crate::{agent, v1, workload};

/// Stands in for a secret; prints only how long it is.
struct Redacted(usize);

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[redacted, {} bytes]", self.0)
    }
}

impl fmt::Debug for v1::RelayedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayedToken")
            .field("token", &Redacted(self.token.len()))
            .field("pod_uid", &self.pod_uid)
            .finish()
    }
}

impl fmt::Debug for v1::JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &format_args!("{} bytes", self.id.len()))
            .field("secret", &Redacted(self.secret.len()))
            .finish()
    }
}

impl fmt::Debug for v1::CreateJoinTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateJoinTokenResponse")
            .field("token", &Redacted(self.token.len()))
            .field("record", &self.record)
            .finish()
    }
}

impl fmt::Debug for workload::X509svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509SVID")
            .field("spiffe_id", &self.spiffe_id)
            .field("x509_svid", &format_args!("{} bytes", self.x509_svid.len()))
            .field("x509_svid_key", &Redacted(self.x509_svid_key.len()))
            .field("bundle", &format_args!("{} bytes", self.bundle.len()))
            .field("hint", &self.hint)
            .finish()
    }
}

impl fmt::Debug for workload::Jwtsvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JWTSVID")
            .field("spiffe_id", &self.spiffe_id)
            .field("svid", &Redacted(self.svid.len()))
            .field("hint", &self.hint)
            .finish()
    }
}

impl fmt::Debug for workload::ValidateJwtsvidRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValidateJWTSVIDRequest")
            .field("audience", &self.audience)
            .field("svid", &Redacted(self.svid.len()))
            .finish()
    }
}

impl fmt::Debug for agent::HandedSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandedSvid")
            .field("spiffe_id", &self.spiffe_id)
            .field("private_key", &Redacted(self.private_key.len()))
            .field("pod_uid", &self.pod_uid)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for agent::HandedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandedToken")
            .field("pod_uid", &self.pod_uid)
            .field("token", &Redacted(self.token.len()))
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for agent::Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offer")
            .field("refused", &self.refused)
            .field("format", &self.format)
            .field("version", &self.version)
            .field("state_key", &Redacted(self.state_key.len()))
            .field("sockets", &self.sockets)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use crate::{agent, v1, workload};

    const SECRET: &str = "s3cr3t-value";

    fn assert_hides(debug: &str) {
        assert!(!debug.contains(SECRET), "{debug}");
        let bytes = format!("{:?}", SECRET.as_bytes());
        assert!(!debug.contains(bytes.trim_matches(['[', ']'])), "{debug}");
        assert!(debug.contains("redacted"), "{debug}");
    }

    #[test]
    fn debug_of_messages_with_tokens_and_keys_hides_them() {
        let relayed = v1::RelayedToken {
            token: SECRET.into(),
            pod_uid: "u".into(),
        };
        assert_hides(&format!("{relayed:?}"));
        let item = v1::IssueItem {
            subject: Some(v1::issue_item::Subject::RelayedToken(relayed)),
            ..Default::default()
        };
        assert_hides(&format!(
            "{:?}",
            v1::IssueBatchRequest { items: vec![item] }
        ));

        let mut join = v1::JoinToken::default();
        join.secret = SECRET.into();
        assert_hides(&format!(
            "{:?}",
            v1::AttestAgentRequest {
                join_token: Some(join),
                ..Default::default()
            }
        ));
        let mut created = v1::CreateJoinTokenResponse::default();
        created.token = SECRET.into();
        assert_hides(&format!("{created:?}"));

        let mut svid = workload::X509svid::default();
        svid.x509_svid_key = SECRET.into();
        let response = workload::X509svidResponse {
            svids: vec![svid],
            ..Default::default()
        };
        assert_hides(&format!("{response:?}"));

        let mut handed = agent::HandedSecret::default();
        let mut svid = agent::HandedSvid::default();
        svid.private_key = SECRET.into();
        handed.svid = Some(svid);
        assert_hides(&format!("{handed:?}"));
        let mut token = agent::HandedToken::default();
        token.token = SECRET.into();
        handed.svid = None;
        handed.subject = Some(agent::handed_secret::Subject::Token(token));
        assert_hides(&format!("{handed:?}"));
        let mut offer = agent::Offer::default();
        offer.state_key = SECRET.into();
        assert_hides(&format!("{offer:?}"));

        let jwt = workload::Jwtsvid {
            svid: SECRET.into(),
            ..Default::default()
        };
        assert_hides(&format!(
            "{:?}",
            workload::JwtsvidResponse { svids: vec![jwt] }
        ));
        let validate = workload::ValidateJwtsvidRequest {
            svid: SECRET.into(),
            ..Default::default()
        };
        assert_hides(&format!("{validate:?}"));
    }
}
