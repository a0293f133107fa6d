//! Personal values of orders: made up, unique, and hostile to careless text handling.
//!
//! Each value holds a tag of letters and digits that no other value of the run has, so that a leak test can search for the tag where the
//! value itself may be escaped.

use super::draw::{Draw, Stream, digits_tag, tag};
use super::market::Market;

/// One personal value of one order, as the leak tests want it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PersonalValue {
    /// `selling_partner_id`.
    pub seller: String,
    /// The clear order id.
    pub order: String,
    /// Group of personal fields, e.g. `buyer_name`.
    pub group: &'static str,
    /// Path inside the order, with indexes, e.g. `orderItems[0].product.customization.customizedUrl`.
    pub path: String,
    /// The clear value.
    pub value: String,
    /// The part of it that no other value holds and that needs no escaping; none for values that many orders share.
    pub needle: Option<String>,
    /// Whether an answer holds it now, if every data set is asked for.
    pub allowed: bool,
}

/// A value and its needle.
#[derive(Debug, Clone)]
pub(super) struct Secret {
    pub(super) value: String,
    pub(super) needle: Option<String>,
}

const NAMES: &[&str] = &[
    "Jürgen Groß",
    "José Núñez",
    "佐藤 花子",
    "Zoë 🎁 Brontë",
    "Łukasz Żółć",
    "Анна Иванова",
    "Siobhán O'Brien",
    "Bob \"Robby\" Tables",
    "Back\\slash Smith",
    "نور الهدى",
    "Ann-Kathrin Müller",
    "İbrahim Çelik",
    "高橋 太郎 様",
    "Nguyễn Thị Ánh",
    "<b>Mary</b> & Sons",
    "Rene\u{301} Descartes",
];
const STREETS: &[&str] =
    &["Hauptstraße", "Rue de l'Église", "High Street", "ul. Świętokrzyska", "Calle Mayor", "丸の内", "Çiçek Sokak", "Elm \"Old\" Road"];
const CITIES: &[&str] = &["Köln", "Orléans", "Leeds", "Łódź", "São Paulo", "東京都千代田区", "İzmir", "St. John's"];
const COMPANIES: &[&str] = &["Groß & Söhne GmbH", "株式会社サンプル", "O'Neill Ltd.", "Société \"Le Coin\"", "C:\\Trade\\Co"];
const WISHES: &[&str] = &[
    "Alles Gute zum Geburtstag, Oma! 🎂",
    "お誕生日おめでとう\n二行目",
    "It's \"the one\" you wanted \\o/",
    "Joyeux Noël\tà toute la famille",
    "С днём рождения",
];
const NOTES: &[&str] =
    &["Hinterhaus, 3. Stock links", "ring twice, dog \"Rex\" bites", "gate code \\#4711", "裏口に置いてください", "chez la voisine"];
const PLACES: &[&str] = &["Garage", "Porch", "Doorman", "Mailroom"];
const REASONS: &[&str] =
    &["Bought by mistake, sorry – call me", "My husband \"Karl\" died", "届け先を間違えました", "too late for the wedding"];
const CARDS: &[&str] = &["Visa", "Mastercard", "JCB"];

/// The personal values of one order.
#[derive(Debug)]
pub(super) struct Person<'a> {
    seed: u64,
    order: u32,
    market: &'a Market,
}

/// Numbers of fields within an order; those of items add 32 for each item.
mod field {
    pub(super) const BUYER: u64 = 1;
    pub(super) const COMPANY: u64 = 2;
    pub(super) const PURCHASE: u64 = 3;
    pub(super) const EMAIL: u64 = 4;
    pub(super) const RECIPIENT: u64 = 5;
    pub(super) const LINES: u64 = 6;
    pub(super) const CITY: u64 = 9;
    pub(super) const POSTCODE: u64 = 10;
    pub(super) const DISTRICT: u64 = 11;
    pub(super) const STREET: u64 = 12;
    pub(super) const HOOD: u64 = 13;
    pub(super) const NOTE: u64 = 14;
    pub(super) const PLACE: u64 = 15;
    pub(super) const TAX_NAME: u64 = 16;
    pub(super) const TAX_NUMBER: u64 = 17;
    pub(super) const TAX_LINE: u64 = 18;
    pub(super) const TAX_OFFICE: u64 = 19;
    pub(super) const AUTHORISATION: u64 = 20;
    pub(super) const ALIAS: u64 = 21;
    pub(super) const UNKNOWN: u64 = 22;
    pub(super) const TRACKING: u64 = 24;
    pub(super) const RECIPIENT_COMPANY: u64 = 26;
    pub(super) const TOWN: u64 = 27;
    pub(super) const PHONE: u64 = 1;
    pub(super) const GIFT: u64 = 32;
    pub(super) const CUSTOM: u64 = 33;
    pub(super) const REASON: u64 = 34;
    pub(super) const SERIAL: u64 = 35;
}

impl<'a> Person<'a> {
    /// The person behind `order`.
    pub(super) const fn of(seed: u64, order: u32, market: &'a Market) -> Self {
        Self { seed, order, market }
    }

    fn tag(&self, field: u64) -> String {
        tag(self.seed, u64::from(self.order), field)
    }

    fn draw(&self, field: u64) -> Draw {
        Draw::new(self.seed, Stream::Personal, u64::from(self.order), field)
    }

    fn tagged(&self, words: &[&str], field: u64) -> Secret {
        let tag = self.tag(field);
        Secret { value: format!("{} {tag}", self.draw(field).pick(words)), needle: Some(tag) }
    }

    fn bare(&self, before: &str, field: u64, after: &str) -> Secret {
        let tag = self.tag(field);
        Secret { value: format!("{before}{tag}{after}"), needle: Some(tag) }
    }

    pub(super) fn buyer_name(&self) -> Secret {
        self.tagged(NAMES, field::BUYER)
    }

    pub(super) fn company(&self) -> Secret {
        self.tagged(COMPANIES, field::COMPANY)
    }

    pub(super) fn purchase_order(&self) -> Secret {
        self.bare("PO/", field::PURCHASE, "")
    }

    /// Amazon's anonymised address of the buyer.
    pub(super) fn email(&self) -> Secret {
        let tag = self.tag(field::EMAIL).to_lowercase();
        Secret { value: format!("{tag}@marketplace.amazon.{}", self.market.country.to_lowercase()), needle: Some(tag) }
    }

    pub(super) fn recipient_name(&self) -> Secret {
        self.tagged(NAMES, field::RECIPIENT)
    }

    /// Address line `line` of 0 to 2.
    pub(super) fn line(&self, line: u64) -> Secret {
        self.tagged(STREETS, field::LINES + line.min(2))
    }

    pub(super) fn city(&self) -> Secret {
        self.tagged(CITIES, field::CITY)
    }

    pub(super) fn postal_code(&self) -> Secret {
        self.bare("", field::POSTCODE, "")
    }

    pub(super) fn district(&self) -> Secret {
        self.tagged(CITIES, field::DISTRICT)
    }

    pub(super) fn recipient_company(&self) -> Secret {
        self.tagged(COMPANIES, field::RECIPIENT_COMPANY)
    }

    /// Turkey's `municipality`.
    pub(super) fn municipality(&self) -> Secret {
        self.tagged(CITIES, field::TOWN)
    }

    /// Brazil's `extendedFields.streetName`.
    pub(super) fn street(&self) -> Secret {
        self.tagged(STREETS, field::STREET)
    }

    /// Brazil's `extendedFields.neighborhood`.
    pub(super) fn neighbourhood(&self) -> Secret {
        self.tagged(CITIES, field::HOOD)
    }

    pub(super) fn phone(&self) -> Secret {
        let digits = digits_tag(self.seed, u64::from(self.order), field::PHONE);
        Secret { value: format!("+49 {digits}"), needle: Some(digits) }
    }

    pub(super) fn instruction(&self) -> Secret {
        self.tagged(NOTES, field::NOTE)
    }

    pub(super) fn drop_off(&self) -> Secret {
        self.tagged(PLACES, field::PLACE)
    }

    pub(super) fn tax_name(&self) -> Secret {
        self.tagged(COMPANIES, field::TAX_NAME)
    }

    pub(super) fn tax_number(&self) -> Secret {
        self.bare(self.market.country, field::TAX_NUMBER, "")
    }

    pub(super) fn tax_line(&self) -> Secret {
        self.tagged(STREETS, field::TAX_LINE)
    }

    pub(super) fn tax_office(&self) -> Secret {
        self.tagged(CITIES, field::TAX_OFFICE)
    }

    pub(super) fn authorisation(&self) -> Secret {
        self.bare("", field::AUTHORISATION, "")
    }

    /// Shared by many orders, so no needle.
    pub(super) fn card(&self) -> Secret {
        Secret { value: self.draw(field::AUTHORISATION).pick(CARDS).to_owned(), needle: None }
    }

    pub(super) fn alias(&self) -> Secret {
        self.bare("SHOP-", field::ALIAS, "")
    }

    /// Value (0) or property name (1) of a field that no model knows.
    pub(super) fn unknown(&self, which: u64) -> Secret {
        self.tagged(NAMES, field::UNKNOWN + which.min(1))
    }

    pub(super) fn tracking(&self, parcel: u64) -> Secret {
        self.bare("1Z", field::TRACKING + parcel.min(1), "")
    }

    pub(super) fn gift_message(&self, item: u64) -> Secret {
        self.tagged(WISHES, field::GIFT + item * 32)
    }

    pub(super) fn customised_url(&self, item: u64) -> Secret {
        self.bare("https://zme-caps.amazon.example/t/", field::CUSTOM + item * 32, "?x=1&y=%20")
    }

    pub(super) fn cancel_reason(&self, item: u64) -> Secret {
        self.tagged(REASONS, field::REASON + item * 32)
    }

    pub(super) fn serial(&self, item: u64) -> Secret {
        self.bare("SN-", field::SERIAL + item * 32, "")
    }
}
