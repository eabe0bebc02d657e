//! The extensions of the profile, each read once.

use x509_parser::asn1_rs::FromDer;
use x509_parser::error::X509Error;
use x509_parser::extensions::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyIdentifier, KeyUsage,
    SubjectAlternativeName, X509Extension,
};
use x509_parser::oid_registry::{
    OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_X509_EXT_BASIC_CONSTRAINTS,
    OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_KEY_USAGE, OID_X509_EXT_SUBJECT_ALT_NAME,
    OID_X509_EXT_SUBJECT_KEY_IDENTIFIER,
};

use super::Rule;

/// One extension.
pub(super) struct Extension<T> {
    pub(super) critical: bool,
    pub(super) value: T,
}

/// What a certificate may have, and nothing else.
#[derive(Default)]
pub(super) struct Extensions<'a> {
    pub(super) names: Option<Extension<SubjectAlternativeName<'a>>>,
    pub(super) constraints: Option<Extension<BasicConstraints>>,
    pub(super) usage: Option<Extension<KeyUsage>>,
    pub(super) purposes: Option<Extension<ExtendedKeyUsage<'a>>>,
    pub(super) subject_key_id: Option<Extension<KeyIdentifier<'a>>>,
    pub(super) authority_key_id: Option<Extension<AuthorityKeyIdentifier<'a>>>,
}

impl<'a> Extensions<'a> {
    /// Takes in one more, or says which rule it breaks.
    ///
    /// x509-parser would look the parser of each up by a hash of its OID, in a table of all that
    /// it knows; these six take a third of that.
    pub(super) fn add(&mut self, extension: &X509Extension<'a>) -> Result<(), Rule> {
        let oid = &extension.oid;
        if *oid == OID_X509_EXT_SUBJECT_ALT_NAME {
            fill(&mut self.names, extension)
        } else if *oid == OID_X509_EXT_BASIC_CONSTRAINTS {
            fill(&mut self.constraints, extension)
        } else if *oid == OID_X509_EXT_KEY_USAGE {
            fill(&mut self.usage, extension)
        } else if *oid == OID_X509_EXT_EXTENDED_KEY_USAGE {
            fill(&mut self.purposes, extension)
        } else if *oid == OID_X509_EXT_SUBJECT_KEY_IDENTIFIER {
            fill(&mut self.subject_key_id, extension)
        } else if *oid == OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER {
            fill(&mut self.authority_key_id, extension)
        } else if extension.critical {
            Err(Rule::UnknownCritical)
        } else {
            Err(Rule::UnexpectedExtension)
        }
    }
}

fn fill<'a, T: FromDer<'a, X509Error>>(
    place: &mut Option<Extension<T>>,
    extension: &X509Extension<'a>,
) -> Result<(), Rule> {
    if place.is_some() {
        return Err(Rule::DuplicateExtension);
    }
    let Ok(([], value)) = T::from_der(extension.value) else {
        return Err(Rule::MalformedExtension);
    };
    *place = Some(Extension {
        critical: extension.critical,
        value,
    });
    Ok(())
}
