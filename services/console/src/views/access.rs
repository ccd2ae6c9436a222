//! What is shown instead of the page: the form for the token, and how to enable the page.

use maud::{Markup, html};

use super::frame;
use crate::site::ENTER;

/// The form for the token.
pub(crate) fn form(is_wrong: bool) -> Markup {
    frame(
        "Token",
        None,
        false,
        &html! {
            h1 { "Token" }
            form.token method="post" action=(ENTER) {
                label for="token" { "Token of this console" }
                input #token name="token" type="password" autocomplete="current-password" required
                    aria-describedby="about-token" aria-invalid=[is_wrong.then_some("true")] autofocus;
                button type="submit" { "Show the console" }
            }
            p #about-token {
                @if is_wrong { strong { "This is not the token." } " " }
                "It is in the file that " code { "SEKIWAKE_CONSOLE_TOKEN_FILE" } " names."
            }
        },
    )
}

/// How to enable the page.
pub(crate) fn not_enabled() -> Markup {
    frame(
        "Not enabled",
        None,
        false,
        &html! {
            h1 { "The console is not enabled here" }
            p {
                "This port can be reached from other hosts (" code { "SEKIWAKE_ADMIN" } "), and no token is set. \
                 Metrics and health checks work as usual."
            }
            ul {
                li {
                    "To ask for a token: write 16 or more random characters into a file, and set "
                    code { "SEKIWAKE_CONSOLE_TOKEN_FILE" } " to its path."
                }
                li {
                    "If the port is protected in another way: set " code { "SEKIWAKE_CONSOLE_TOKEN_FILE=none" } "."
                }
            }
        },
    )
}

/// The header `Host` names another host.
pub(crate) fn wrong_host(host: &str) -> Markup {
    frame(
        "Unknown host name",
        None,
        false,
        &html! {
                   h1 { "Unknown host name" }
                   p {
        "“" (host.chars().take(253).collect::<String>()) "” is not a host name of this console. Use its IP \
                        address, or add the name to " code { "SEKIWAKE_CONSOLE_HOSTS" } "."
                   }
               },
    )
}

/// The form was sent by the page of another site.
pub(crate) fn foreign_form() -> Markup {
    frame(
        "Not accepted",
        None,
        false,
        &html! {
            h1 { "Not accepted" }
            p { "The form was sent by a page of another host. " a href="/" { "Open the console" } " and enter the token." }
        },
    )
}

/// No such page.
pub(crate) fn not_found() -> Markup {
    frame("No such page", None, false, &html! { h1 { "No such page" } p { a href="/" { "To the flow" } } })
}
