"""Any JSON value, for Hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["path", "msg", "c", "f", "s", "id", "k", "p", "r", "e", "b", "d", "sig", "af", "__t", "__v", "x"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)
