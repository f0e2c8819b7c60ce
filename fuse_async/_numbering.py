"""Which country a number rings in, and what costs more than a call: data, and four look-ups.

Everything takes *full digits*, country code first and no ``+`` (``"16175550101"``). The tables
answer "may this be dialled at all", so they lean to caution: a number that no table knows belongs
to no country, and what belongs to no country is in no list of allowed ones. They do not tell
whether a number is in use.
"""

from __future__ import annotations

import re

__all__ = ["COUNTRIES", "PREMIUM_AREAS", "countries_of", "is_never_dialled", "is_premium"]


def _table(text: str) -> dict[str, tuple[str, ...]]:
    return {entry[2:]: (entry[:2],) for entry in text.split()}


def _codes(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Country calling codes (ITU-T E.164 assignments) and the longer prefixes under which a second
# country shares a code. The longest prefix wins. Codes of no country are left out on purpose
# (800, 808, 870, 878, 881, 882, 883, 888, 979: free, satellite and premium services worldwide).
_BY_PREFIX = """
EG20 SS211 MA212 EH2125288 EH2125289 DZ213 TN216 LY218 GM220 SN221 MR222 ML223 GN224 CI225 BF226
NE227 TG228 BJ229 MU230 LR231 SL232 GH233 NG234 TD235 CF236 CM237 CV238 ST239 GQ240 GA241 CG242
CD243 AO244 GW245 IO246 AC247 SC248 SD249 RW250 ET251 SO252 DJ253 KE254 TZ255 UG256 BI257 MZ258
ZM260 MG261 RE262 YT262269 YT262639 ZW263 NA264 MW265 LS266 BW267 SZ268 KM269 ZA27 SH290 TA2908
ER291 AW297 FO298 GL299
GR30 NL31 BE32 FR33 ES34 GI350 PT351 LU352 IE353 IS354 AL355 MT356 CY357 FI358 AX35818 BG359 HU36
LT370 LV371 EE372 MD373 AM374 BY375 AD376 MC377 SM378 VA379 UA380 RS381 ME382 XK383 HR385 SI386
BA387 MK389 IT39 VA3906698
RO40 CH41 CZ420 SK421 LI423 AT43 GB44 DK45 SE46 NO47 SJ4779 PL48 DE49
GG441481 GG447781 GG447839 GG4479111 GG4479117
JE441534 JE447509 JE447797 JE447829 JE447937 JE4477003 JE4477007 JE4477008
IM441624 IM447524 IM447624 IM447924 IM4474576
FK500 BZ501 GT502 SV503 HN504 NI505 CR506 PA507 PM508 HT509 PE51 MX52 CU53 AR54 BR55 CL56 CO57
VE58 GP590 BO591 GY592 EC593 GF594 PY595 MQ596 SR597 UY598 BQ599 CW5999
MY60 AU61 CC6189162 CX6189164 ID62 PH63 NZ64 SG65 TH66 TL670 AQ6721 NF6723 BN673 NR674 PG675
TO676 SB677 VU678 FJ679 PW680 WF681 CK682 NU683 WS685 KI686 NC687 TV688 PF689 TK690 FM691 MH692
RU7 KZ76 KZ77
JP81 KR82 VN84 KP850 HK852 MO853 KH855 LA856 CN86 BD880 TW886
TR90 IN91 PK92 AF93 LK94 MM95 MV960 LB961 JO962 SY963 IQ964 KW965 SA966 YE967 OM968 PS970 AE971
IL972 BH973 QA974 BT975 MN976 NP977 IR98 TJ992 TM993 AZ994 GE995 KG996 UZ998
"""

# Area codes behind +1 that are not the United States (NANPA). A call there costs what a call
# abroad costs, though nothing in the number's form shows it.
_NANP_ELSEWHERE = """
AG268 AI264 AS684 BB246 BM441 BS242 DM767 DO809 DO829 DO849 GD473 GU671 JM658 JM876 KN869 KY345
LC758 MP670 MS664 PR787 PR939 SX721 TC649 TT868 VC784 VG284 VI340
CA204 CA226 CA236 CA249 CA250 CA257 CA263 CA273 CA289 CA306 CA343 CA354 CA365 CA367 CA368 CA382
CA387 CA403 CA416 CA418 CA428 CA431 CA437 CA438 CA450 CA460 CA468 CA474 CA506 CA514 CA519 CA548
CA579 CA581 CA584 CA587 CA600 CA604 CA613 CA622 CA633 CA639 CA644 CA647 CA655 CA672 CA677 CA683
CA688 CA705 CA709 CA742 CA753 CA778 CA780 CA782 CA807 CA819 CA825 CA867 CA873 CA879 CA902 CA905
CA942
"""

# In use or set aside for it.
_TOLL_FREE = _codes("800 822 833 844 855 866 877 880 881 882 887 888 889")
_US = ("US",)
_US_AND_CANADA = ("US", "CA")


_PREFIXES = _table(_BY_PREFIX)
_LONGEST = max(map(len, _PREFIXES))
_AREAS = _table(_NANP_ELSEWHERE) | dict.fromkeys(_TOLL_FREE, _US_AND_CANADA)

COUNTRIES = frozenset({"US", *(code for (code, *_) in [*_PREFIXES.values(), *_AREAS.values()])})
"""ISO 3166 codes of the countries that the tables know (and XK, which Kosovo uses)."""

# What can be billed beyond a normal call: 900 pay-per-call; 700 means what the caller's carrier
# says; 710 the US government's; the 5xx "personal" and "non-geographic" codes and Canada's 6xx
# (600: caller-paid satellite) are forwarded anywhere, at rates that the number does not show.
PREMIUM_AREAS = _codes(
    "900 700 710 456 500 521 522 523 524 525 526 527 528 529 532 533 535 538 542 543 544 545 546"
    " 547 549 550 552 553 554 556 566 569 577 578 588 589"
    " 600 622 633 644 655 677 688"
)
# 976 is pay-per-call in every area code.
_PREMIUM_EXCHANGE = "976"

# The best known ones abroad, by country code; a country's own list is longer, and allowing a
# country means trusting its tariffs. Ireland's 15xx is told from Dublin's 01 5 by its length.
_premium_abroad = re.compile(
    "44(9|70|87)|49(900|137)|33(89|8[12])|61190|35315.{8}|39(89|144|166)|3480[367]|4190[016]"
    "|43(90[01]|930)|3190[069]|3290|52900|55[59]00|6490|4870|469(00|39|44)|81990"
).match

# Emergency and service codes. None is ever dialled, by whatever option.
_SERVICE = _codes("000 112 988 999 211 311 411 511 611 711 811 911")


def countries_of(digits: str) -> tuple[str, ...]:
    """Return the ISO codes of the countries that `digits` may ring in: one, two, or none.

    North American toll-free numbers belong to the United States and Canada. Area codes that no
    table names count as the United States. Empty where no country has the calling code.
    """
    if digits[:1] == "1":
        return _AREAS.get(digits[1:4], _US)
    for length in range(_LONGEST, 0, -1):
        found = _PREFIXES.get(digits[:length])
        if found is not None:
            return found
    return ()


def is_premium(digits: str) -> bool:
    """Return whether a call to `digits` can be billed beyond a normal call."""
    if digits[:1] == "1":
        return digits[1:4] in PREMIUM_AREAS or digits[4:7] == _PREMIUM_EXCHANGE
    return _premium_abroad(digits) is not None


def is_never_dialled(digits: str) -> bool:
    """Return whether `digits` are an emergency or service code, or have N11 as +1 area code.

    As the whole number such a code may have the 1 of a country code in front, since a switch
    may take that off.
    """
    if digits in _SERVICE or (digits[:1] == "1" and digits[1:] in _SERVICE):
        return True
    return len(digits) == 11 and digits[0] == "1" and digits[1] > "1" and digits[2:4] == "11"
