//! Keys, certificate requests and certificates, made at run time by tools
//! that share no code with ours.

pub mod csr;
pub mod der;
pub mod hostile;
pub mod openssl;
