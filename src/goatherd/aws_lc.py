"""Let this process verify signatures with AWS-LC, which takes less than half of the time that OpenSSL takes for P-384.

AWS-LC comes with the library `awscrt`. Signing stays with OpenSSL, since AWS-LC's signatures are not deterministic.
"""

from __future__ import annotations

import os
import threading

from goatherd.crypto.keys import OtherLibrary, verify_with

_FEW_CORES = 2


def use_aws_lc() -> bool:
    """Verify with AWS-LC from now on, if `awscrt` is installed; return whether it is.

    `awscrt` holds the GIL while it verifies. So AWS-LC verifies in the main thread, where requests wait for the result.
    In other threads it verifies only on a machine with one or two cores, where one thread verifies many signatures
    faster than several, which would wait for each other. On more cores, several threads with OpenSSL are faster.
    """
    try:
        from awscrt.crypto import EC
    except ImportError:
        return False
    has_few_cores = _core_count() <= _FEW_CORES
    main = threading.main_thread().ident
    verify_with(
        OtherLibrary(
            EC.new_key_from_der_data,
            is_preferred=lambda: has_few_cores or threading.get_ident() == main,
            is_serial=has_few_cores,
        )
    )
    return True


def _core_count() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1
