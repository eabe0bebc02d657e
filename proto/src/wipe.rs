//! Messages that carry private keys wipe them when they are dropped: a server's once it
//! is encoded, a client's once it was read.

use zeroize::Zeroize;

use crate::workload;

impl Drop for workload::X509svid {
    fn drop(&mut self) {
        self.x509_svid_key.zeroize();
    }
}
