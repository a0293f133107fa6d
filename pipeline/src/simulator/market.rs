//! The marketplaces that simulated sellers sell in.

/// One marketplace.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Market {
    /// Amazon's id.
    pub(super) id: &'static str,
    /// Region of the SP-API: `eu`, `na`, `fe`.
    pub(super) region: &'static str,
    /// Shown name.
    pub(super) name: &'static str,
    /// ISO 3166-1.
    pub(super) country: &'static str,
    /// ISO 4217.
    pub(super) currency: &'static str,
    /// Decimals of the currency.
    pub(super) decimals: u32,
    /// First three digits of its order ids.
    pub(super) prefix: u32,
}

macro_rules! market {
    ($id:literal, $region:literal, $name:literal, $country:literal, $currency:literal, $decimals:literal, $prefix:literal) => {
        Market { id: $id, region: $region, name: $name, country: $country, currency: $currency, decimals: $decimals, prefix: $prefix }
    };
}

/// Known marketplaces. Ids and domains as open-source clients list them; prefixes of order ids chosen in the manner of real ones.
pub(super) const MARKETS: &[Market] = &[
    market!("A1PA6795UKMFR9", "eu", "Amazon.de", "DE", "EUR", 2, 302),
    market!("A13V1IB3VIYZZH", "eu", "Amazon.fr", "FR", "EUR", 2, 402),
    market!("A1F83G8C2ARO7P", "eu", "Amazon.co.uk", "GB", "GBP", 2, 202),
    market!("A1C3SOZRARQ6R3", "eu", "Amazon.pl", "PL", "PLN", 2, 406),
    market!("A33AVAJ2PDY3EV", "eu", "Amazon.com.tr", "TR", "TRY", 2, 407),
    market!("ATVPDKIKX0DER", "na", "Amazon.com", "US", "USD", 2, 112),
    market!("A2EUQ1WTGCTBG2", "na", "Amazon.ca", "CA", "CAD", 2, 701),
    market!("A2Q3Y263D00KWC", "na", "Amazon.com.br", "BR", "BRL", 2, 703),
    market!("A1VC38T7YXB528", "fe", "Amazon.co.jp", "JP", "JPY", 0, 250),
    market!("A39IBJ37TRP1C6", "fe", "Amazon.com.au", "AU", "AUD", 2, 251),
];

/// Regions in the order in which sellers get them: most are European.
pub(super) const REGIONS: &[&str] = &["eu", "na", "eu", "fe"];

/// The marketplaces of `region`.
pub(super) fn of_region(region: &str) -> Vec<&'static Market> {
    MARKETS.iter().filter(|market| market.region == region).collect()
}

/// Whether `id` is a marketplace at all.
pub(super) fn is_known(id: &str) -> bool {
    MARKETS.iter().any(|market| market.id == id)
}

impl Market {
    /// `minor` units of the currency as Amazon writes amounts: a decimal string with the currency's decimals.
    pub(super) fn amount(&self, minor: i64) -> String {
        if self.decimals == 0 {
            return minor.to_string();
        }
        let (sign, minor) = (if minor < 0 { "-" } else { "" }, minor.unsigned_abs());
        let unit = 10u64.pow(self.decimals);
        format!("{sign}{}.{:0width$}", minor / unit, minor % unit, width = self.decimals as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_the_decimals_of_the_currency() {
        let [euro, yen] = ["EUR", "JPY"].map(|code| MARKETS.iter().find(|m| m.currency == code).unwrap());
        assert_eq!(euro.amount(1205), "12.05");
        assert_eq!(euro.amount(-5), "-0.05");
        assert_eq!(yen.amount(1205), "1205");
    }
}
