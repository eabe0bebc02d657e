mod cacerts;
mod own;
