//! The rules, and where each comes from.

use std::fmt;

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident = $source:literal, $text:literal;)*) => {
        /// One rule. Its text names the SPIFFE requirement or the standard's section.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Rule {
            $(#[doc = $text] $name,)*
        }

        impl Rule {
            /// All rules.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Where the rule comes from.
            pub fn source(self) -> &'static str {
                match self { $(Self::$name => $source,)* }
            }

            /// What the rule demands.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

rules! {
    Parses = "RFC 5280 section 4.1", "it is an X.509 certificate in DER";
    NothingBehind = "RFC 5280 section 4.1", "no bytes follow the certificate or a part of it";
    Version3 = "RFC 5280 section 4.1.2.1", "its version is 3";
    Serial = "RFC 5280 section 4.1.2.2", "its serial number is positive and has at most 20 octets";
    SameAlgorithm = "RFC 5280 section 4.1.1.2", "inner and outer signature algorithm are the same";
    IssuerAlgorithm = "RFC 5280 section 4.1.1.2", "its signature algorithm is one of the issuer's key";
    IssuerName = "RFC 5280 section 4.1.2.4", "its issuer is the issuer's subject, byte for byte";
    ValidityOrder = "RFC 5280 section 4.1.2.5", "its validity ends after it begins";
    ValidityInIssuer = "RFC 5280 section 4.1.2.5", "its validity lies within the issuer's";
    Lifetime = "Citadel policy", "its lifetime is at most the longest that is allowed";
    NotBeforePast = "Citadel policy", "its validity begins no more than 10 minutes ago";
    NotBeforeFuture = "Citadel policy", "its validity has begun (10 seconds are allowed)";
    NotExpired = "Citadel policy", "its validity has not ended";
    EmptySubject = "Citadel policy", "an SVID's subject is empty";
    AuthoritySubject = "RFC 5280 section 4.1.2.6", "a CA's subject is not empty";
    KeyType = "Citadel policy", "its key is ECDSA P-256, P-384 or RSA 2048 to 4096 with e = 65537";
    GrantedKey = "Citadel policy", "its key is the one whose possession was proven";
    OneUri = "SPIFFE requirement 7", "it has exactly one URI SAN";
    SpiffeId = "SPIFFE requirements 1 to 3", "its URI SAN is a SPIFFE ID in normal form";
    IdLength = "SPIFFE requirement 4", "its SPIFFE ID has at most 2048 bytes";
    TrustDomain = "SPIFFE requirement 6", "its SPIFFE ID is one of the CA's trust domain";
    LeafPath = "SPIFFE requirement 8", "an SVID's ID has a path";
    SanCritical = "SPIFFE requirement 8", "the SAN is critical where the subject is empty";
    AuthorityPath = "SPIFFE requirement 9", "a CA's ID has no path";
    ReservedPath = "Citadel policy", "/citadel/ is for agents and the CA alone, each with its own form";
    GrantedId = "Citadel policy", "its SPIFFE ID is the granted one";
    OtherNames = "Citadel policy", "its SAN holds URIs and DNS names alone";
    Wildcard = "Citadel policy", "no DNS name has a wildcard";
    DnsSyntax = "RFC 1123 section 2.1", "its DNS names are host names";
    GrantedDnsNames = "Citadel policy", "its DNS names are the granted ones";
    AuthorityCa = "SPIFFE requirement 9", "a CA certificate has cA=true and keyCertSign";
    LeafNotCa = "SPIFFE requirement 10", "an SVID has critical basic constraints with cA=false";
    LeafDigitalSignature = "SPIFFE requirement 10", "an SVID's key usage has digitalSignature";
    LeafNoSigning = "SPIFFE requirement 10", "an SVID's key usage lacks keyCertSign and cRLSign";
    LeafNoOtherUsage = "Citadel policy", "an SVID's key usage has nothing but digitalSignature";
    KeyUsagePresent = "SPIFFE requirement 11", "the key usage is present";
    KeyUsageCritical = "SPIFFE requirement 11", "the key usage is critical";
    ServerAndClient = "SPIFFE requirement 12", "an SVID is for server and client authentication, and nothing else";
    SubjectKeyId = "RFC 5280 section 4.2.1.2", "the subject key identifier is present, and not critical";
    AuthorityKeyId = "RFC 5280 section 4.2.1.1", "the authority key identifier is the issuer's SKI, and not critical";
    DuplicateExtension = "RFC 5280 section 4.2", "no extension is there twice";
    UnknownCritical = "RFC 5280 section 4.2", "no unknown extension is critical";
    UnexpectedExtension = "Citadel policy", "there is no extension beyond the profile's";
    MalformedExtension = "RFC 5280 section 4.2", "each extension parses";
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.source(), self.text())
    }
}
