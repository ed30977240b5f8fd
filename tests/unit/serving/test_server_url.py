"""The parser of server URLs and listen addresses: what it accepts, and one clear error for each mistake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.errors import ConfigurationError
from goatherd.serving.server_url import (
    ServerURL,
    check_http_url,
    masked,
    parse_listen_address,
    parse_listen_host,
    parse_server_url,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://10.0.0.2:8080", ServerURL("http", "10.0.0.2", 8080)),
        ("http://10.0.0.2:8080/", ServerURL("http", "10.0.0.2", 8080)),
        ("HTTPS://Goats.Example", ServerURL("https", "goats.example", None)),
        ("http://[::1]:1", ServerURL("http", "::1", 1)),
        ("http://[fe80::1%eth0]", ServerURL("http", "fe80::1%eth0", None)),
        ("http://db_1.goats.svc.:65535", ServerURL("http", "db_1.goats.svc.", 65535)),
    ],
)
def test_a_server_is_scheme_host_and_port(text: str, expected: ServerURL) -> None:
    assert parse_server_url(text) == expected
    assert parse_server_url(str(expected)) == expected


def test_the_port_to_connect_to_is_the_schemes_unless_the_url_has_one() -> None:
    ports = [parse_server_url(url).connect_port for url in ("http://a", "https://a", "https://a:8443")]
    assert ports == [80, 443, 8443]


WRONG = [
    ("", "the URL is empty"),
    ("  ", "the URL is empty"),
    ("localhost:8080", "has no scheme"),
    ("10.0.0.2", "has no scheme"),
    ("ftp://h", "has the scheme 'ftp'"),
    ("http:/h:80", "needs two slashes after the scheme"),
    ("http:h", "needs two slashes after the scheme"),
    ("http://", "has no host"),
    ("http://:8080", "has no host"),
    ("http:///x", "has a path"),
    ("http://h:8080/goats", "has a path"),
    ("http://h?x=1", "has a query"),
    ("http://h#x", "has a fragment"),
    ("http://h:", "has a colon without a port"),
    ("http://h:0", "has the port 0; a port is 1 to 65535"),
    ("http://h:99999", "has the port 99999; a port is 1 to 65535"),
    ("http://h:" + "9" * 5000, "a port is 1 to 65535"),
    ("http://h:-1", "has '-1' where the port must be a number"),
    ("http://h:http", "has 'http' where the port must be a number"),
    ("http://h:８０", "where the port must be a number"),
    ("http://a,b", "names several servers"),
    ("http://a:1,http://b:2", "names several servers"),
    ("http://a b", "contains a space or a control character"),
    ("http://a\nb", "contains a space or a control character"),
    ("http://a\x00", "contains a space or a control character"),
    ("http://::1:8080", "needs brackets around its IPv6 address"),
    ("http://[::1", "has a bracket that does not close"),
    ("http://[::1]8080", "has a bracket that does not close"),
    ("http://[h]:80", "has brackets around what is not an IPv6 address"),
    ("http://[::zz]:80", "where an IPv6 address must be"),
    ("http://256.1.1.1:80", "where an IPv4 address must be"),
    ("http://bücher.example", "has a host that is not in ASCII; write xn--bcher-kva.example"),
    ("http://a..b", "has a host that is not a valid name"),
    ("http://-a", "has a host that is not a valid name"),
    ("http://" + "a" * 64, "has a host that is not a valid name"),
    ("http://" + "a." * 200 + "b", "has a host that is not a valid name"),
    ("http://a\\b", "has a host that is not a valid name"),
    ("http://user:secret@h:80", "contains a user name or a password"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_each_mistake_has_one_clear_error(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_server_url(text)
    assert message in str(caught.value)
    assert caught.value.hint
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        "http://user:hunter2@h:8080",
        "http://hunter2@h:99999",
        "http://user:hunter2/x@h",
        "http://user:hunter2?x@h",
        "http://user:hunter2#x@h:80/",
        "http://user:hunter2@@h",
        "user:hunter2@h:8080",
        "https:user:hunter2@h",
        "ftp://user:hunter2@h",
        "http://h:8080/?token=hunter2",
        "dns://user:hunter2@h:8080",
        "k8s-service://user:hunter2@ns/name:80",
        "dns://h:80?token=hunter2",
    ],
)
def test_no_message_repeats_a_password_or_a_query(text: str) -> None:
    from goatherd.config.values import parse_nodes

    for parse in (parse_server_url, lambda value: parse_nodes((value,)), parse_listen_host, parse_listen_address):
        with pytest.raises(ConfigurationError) as caught:
            parse(text)
        assert "hunter2" not in str(caught.value) + caught.value.hint
    assert "hunter2" not in masked(text)


@pytest.mark.slow
@given(st.text(max_size=60))
def test_any_text_is_a_server_or_a_configuration_error(text: str) -> None:
    for prefix in ("", "http://", "https://h:", "http://["):
        try:
            found = parse_server_url(prefix + text)
        except ConfigurationError:
            continue
        assert parse_server_url(str(found)) == found


def test_the_url_of_a_probe_may_have_credentials_path_and_query_but_no_wrong_port() -> None:
    url = "http://probe:p@10.0.0.9:9000/healthy?x=1"
    assert check_http_url(url, hint="x") == url
    with pytest.raises(ConfigurationError, match="has the port 99999"):
        check_http_url("http://probe:p@10.0.0.9:99999/healthy", hint="x")


@pytest.mark.parametrize("text", ["127.0.0.1", "0.0.0.0", "::", "[::1]", "localhost", "goats.example"])
def test_an_address_to_listen_on_is_a_host(text: str) -> None:
    assert parse_listen_host(text) == text.strip("[]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("http://127.0.0.1", "is a URL"),
        ("127.0.0.1:8080", "has a port"),
        ("[::1]:8080", "has a port"),
        ("localhost:8080", "has a port"),
        ("300.1.1.1", "where an IPv4 address must be"),
        ("a b", "has a host that is not a valid name"),
        ("x" * 300, "has a host that is not a valid name"),
    ],
)
def test_what_is_no_address_to_listen_on_says_why(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_listen_host(text)
    assert message in str(caught.value)


def test_an_address_with_a_port_is_read_and_each_mistake_told() -> None:
    assert parse_listen_address("127.0.0.1:9464") == ("127.0.0.1", 9464)
    assert parse_listen_address("[::1]:0") == ("::1", 0)
    for text, message in {
        "127.0.0.1": "has no port",
        "localhost": "has no port",
        "9464": "is not ADDRESS:PORT",
        "": "is not ADDRESS:PORT",
        "::1:9464": "has no port",  # all of it is an IPv6 address
        ":9464": "is empty",
        "127.0.0.1:": "has a colon without a port",
        "127.0.0.1:99999": "has the port 99999; a port is 0 to 65535",
        "127.0.0.1:http": "where the port must be a number",
        "http://127.0.0.1:80": "is a URL",
    }.items():
        with pytest.raises(ConfigurationError) as caught:
            parse_listen_address(text)
        assert message in str(caught.value), text
