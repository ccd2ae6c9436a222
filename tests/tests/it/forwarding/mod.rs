//! What operators trust a forwarder with: destinations that change, die and come back.

mod reload;
