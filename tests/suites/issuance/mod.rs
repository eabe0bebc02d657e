//! From a token to a certificate and its record: what is issued, what is
//! recorded, and what no request can get.

mod hostile;
mod records;
mod tls;
