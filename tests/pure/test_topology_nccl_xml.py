"""A topology that NCCL dumped becomes a cluster of its GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from topology import Cluster, from_nccl_xml, load
from topology.matrix import connection, show

GEN5 = 'link_speed="32.0 GT/s PCIe" link_width="16"'


def nvswitch_host() -> str:
    """8 GPUs and 8 NICs: below each of two CPUs four PCI switches, each with a GPU and a NIC; 4 NVSwitches."""
    lines = ['<system version="1">']
    for cpu in range(2):
        lines.append(
            f'<cpu host_hash="0x7" numaid="{cpu}" affinity="ff" arch="x86_64" vendor="GenuineIntel" '
            f'familyid="6" modelid="143">'
        )
        for switch in range(4 * cpu, 4 * cpu + 4):
            lines.append(f'<pci busid="0000:{switch}0:00.0" class="0x060400" {GEN5}>')
            lines.append(f'<pci busid="0000:{switch}1:00.0" class="0x030200" {GEN5}>')
            lines.append(f'<gpu dev="{switch}" sm="90" rank="{switch}" gdr="1">')
            lines += [
                f'<nvlink target="0000:f{n}:00.0" count="{count}" tclass="0x068000"/>'
                for n, count in enumerate((5, 5, 4, 4))
            ]
            lines += ["</gpu>", "</pci>"]
            lines.append(f'<pci busid="0000:{switch}2:00.0" class="0x020000" {GEN5}>')
            lines.append(f'<nic><net name="mlx5_{switch}" dev="{switch}" speed="400000" port="1" latency="0.0"/></nic>')
            lines += ["</pci>", "</pci>"]
        lines.append("</cpu>")
    return "\n".join([*lines, "</system>"])


PCI_HOST = """\
<system version="1">
  <cpu numaid="0" affinity="000000ff" arch="x86_64" vendor="AuthenticAMD" familyid="25" modelid="1">
    <pci busid="0000:40:00.0" class="0x060400" link_speed="16.0 GT/s PCIe" link_width="8">
      <pci busid="0000:41:00.0" class="0x030000" link_speed="16.0 GT/s PCIe" link_width="16">
        <gpu dev="0" sm="86" rank="1" gdr="0"/>
      </pci>
      <pci busid="0000:42:00.0" class="0x030000" link_speed="16.0 GT/s PCIe" link_width="16">
        <gpu dev="1" sm="86" rank="0" gdr="0"/>
      </pci>
    </pci>
    <pci busid="0000:01:00.0" class="0x030000" link_speed="8 GT/s" link_width="16">
      <gpu dev="2" sm="86" rank="2" gdr="0"/>
    </pci>
    <nic>
      <net name="eth0" dev="0" speed="-1" port="0"/>
    </nic>
  </cpu>
</system>
"""


def names(cluster: Cluster, source: int, target: int) -> list[str]:
    return [cluster.links[number].name for number in cluster.path(source, target)]


def test_gpus_behind_nvswitch_reach_each_other_over_all_their_nvlinks() -> None:
    cluster = from_nccl_xml(nvswitch_host())
    assert cluster.size == 8
    assert cluster.hosts == (tuple(range(8)),)
    assert names(cluster, 0, 7) == ["gpu 0000:01:00.0 to nvswitch", "nvswitch to gpu 0000:71:00.0"]
    assert cluster.bandwidth_bytes_per_s(0, 7) == pytest.approx(18 * 20.6e9)
    assert connection(cluster, 0, 7) == "NV18"


def test_nics_say_how_near_they_are_to_each_gpu() -> None:
    nics = [device for device in from_nccl_xml(nvswitch_host()).devices if device.near]
    assert [nic.name for nic in nics] == [f"mlx5_{n}" for n in range(8)]
    assert nics[0].near == ("PIX", *["PHB"] * 3, *["SYS"] * 4)
    assert nics[5].near == (*["SYS"] * 4, "PHB", "PIX", "PHB", "PHB")
    assert nics[0].about == "NIC, 400 Gbit/s"


def test_gpus_on_pci_alone_in_the_order_of_their_ranks() -> None:
    cluster = from_nccl_xml(PCI_HOST)
    assert names(cluster, 0, 1) == [
        *("gpu 0000:42:00.0 to pci 0000:40:00.0", "pci 0000:40:00.0 to gpu 0000:41:00.0"),
    ]
    assert connection(cluster, 0, 1) == "PIX"
    assert connection(cluster, 0, 2) == "PHB"
    assert cluster.bandwidth_bytes_per_s(0, 1) == pytest.approx(24e9)  # three quarters of 16 GT/s x 16 lanes
    assert cluster.bandwidth_bytes_per_s(0, 2) == pytest.approx(12e9)
    (nic,) = (device for device in cluster.devices if device.near)
    assert (nic.name, nic.near) == ("eth0", ("PHB", "PHB", "PHB"))


def test_nvlinks_between_gpus_are_as_many_as_are_counted() -> None:
    text = PCI_HOST.replace(
        '<gpu dev="0" sm="86" rank="1" gdr="0"/>',
        '<gpu dev="0" sm="86" rank="1"><nvlink target="0000:42:00.0" count="4" tclass="0x030000"/></gpu>',
    ).replace(
        '<gpu dev="1" sm="86" rank="0" gdr="0"/>',
        '<gpu dev="1" sm="86" rank="0"><nvlink target="0000:41:00.0" count="4"/></gpu>',
    )
    cluster = from_nccl_xml(text)
    assert connection(cluster, 0, 1) == connection(cluster, 1, 0) == "NV4"
    assert cluster.bandwidth_bytes_per_s(0, 1) == pytest.approx(4 * 12e9)
    assert connection(cluster, 0, 2) == "PHB"


def test_nvlinks_to_the_cpu_are_taken_instead_of_pci_and_nics_are_as_near_as_over_pci() -> None:
    nvlink = '<nvlink target="0000:00:00.0" count="3" tclass="0x068001"/>'
    text = PCI_HOST.replace('rank="2" gdr="0"/>', f'rank="2">{nvlink}</gpu>')
    cluster = from_nccl_xml(text)
    (first, *_) = cluster.path(2, 0)
    (*_, last) = cluster.path(0, 2)
    assert cluster.kinds[first] == cluster.kinds[last] == "NV3"
    assert cluster.links[first].bandwidth_bytes_per_s == pytest.approx(3 * 12e9)
    assert [device.near for device in cluster.devices if device.near] == [("PHB", "PHB", "PHB")]


def test_gpus_without_a_rank_count_only_when_none_has_one() -> None:
    assert from_nccl_xml(PCI_HOST.replace(' rank="1"', "")).size == 2
    without = PCI_HOST
    for rank in range(3):
        without = without.replace(f' rank="{rank}"', "")
    assert names(from_nccl_xml(without), 0, 1)[0].startswith("gpu 0000:41")


def test_an_imported_cluster_is_a_file_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "dgx.xml").write_text(nvswitch_host())
    cluster = from_nccl_xml(tmp_path / "dgx.xml")
    assert cluster.name == "dgx"
    assert Cluster.from_json(cluster.to_json()) == cluster
    assert show(Cluster.from_json(cluster.to_json())) == show(cluster)
    assert from_nccl_xml(str(tmp_path / "dgx.xml")) == load(str(tmp_path / "dgx.xml")) == cluster


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PCI_HOST.replace("</cpu>", ""), "XML:18: this is not XML: mismatched tag"),
        (PCI_HOST[:300], "XML:4: this is not XML"),
        ("<graphs/>", "XML:1: expected <system>, not <graphs>"),
        ("<system/>", "XML:1: <system>: there is no <gpu>"),
        (PCI_HOST.replace(' numaid="0"', ""), "XML:2: <cpu>: the attribute 'numaid' is missing"),
        (PCI_HOST.replace('rank="1"', 'rank="one"'), "XML:5: <gpu>: rank='one' must be a whole number"),
        (PCI_HOST.replace('rank="1"', 'rank="2"'), "XML:12: <gpu>: rank=2 is there twice, first at XML:5"),
        (PCI_HOST.replace('link_width="8"', 'link_width="x"'), "XML:3: <pci>: link_width='x' must be"),
        (PCI_HOST.replace(' busid="0000:01:00.0"', ""), "XML:11: <pci>: the attribute 'busid' is missing"),
        (
            PCI_HOST.replace('rank="2" gdr="0"/>', 'rank="2"><nvlink target="0000:41:00.0" count="0"/></gpu>'),
            "XML:12: <nvlink>: count=0 must be at least 1",
        ),
        ("<system>" + "<pci>" * 1000, "XML:1: <pci>: nested too deeply"),
        ('<!DOCTYPE s [<!ENTITY a "b">]>' + PCI_HOST, "XML:1: a topology has no DOCTYPE"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_nccl_xml(text)
