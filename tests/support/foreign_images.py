"""Images that Pillow cannot write, as tifffile 2026.3 and imagecodecs 2026.3 wrote them from `levels`.

Shapes: H W pixels, with samples behind them or pages before them.
"""

import zlib
from base64 import b85decode
from pathlib import Path

import numpy as np

HEIGHT, WIDTH = 6, 5


def levels(dtype: str, *shape: int) -> np.ndarray:
    """The array in a file: a sequence without repetition in the range that its type is used for."""
    number = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    values = {"uint8": number * 37 % 251, "uint16": number * 997 % 10001, "int8": number * 37 % 251 - 125}
    return (number / 7 - 3 if dtype == "float32" else values[dtype]).astype(dtype)


def write_foreign(folder: Path, name: str) -> Path:
    """One of TIFFS or OTHERS as a file."""
    path = folder / f"{name}{'.tif' if name in TIFFS else '.png'}"
    path.write_bytes(zlib.decompress(b85decode(TIFFS.get(name) or OTHERS[name])))
    return path


TIFFS = {
    "rgb and one more": (
        "c-r&y)MDUZU|`^9U|?inU<9&QftV4>W&>g-MrH;UAbkjknSpGOI7kN@l+6Uhf>8AzfLIhN4$>orWR5tL-3-K1jI3bxDIk`HvM&L#"
        "3{)=&Yap==8JQS(fb=aO4uXoq00$Jp)WUE{W?EWWW=^VJK_!yviaCrG4DJ6JRK4=2?7YXJ8&p2$;4=Z!sQM)*-$~dewXeDOO~Ey*"
        "f6Gl~4d0^admeHdgjUTz@>19$wrTm9kJ1jQUF)y>RQAZ7wEYg7c0lQ@{ZIIeBWf2Ne<Nm{(7NjU7dhvQ-c8pT)w~O)?z+#Z7hEy-"
        "&~rhv=!T`I-b>mgcjU5J#sdH{uSr}"
    ),
    "rgb and one more, planes": (
        "c-r&y)MDUZU|`^9U|?inU<9&QftV4>W&>g-MrH;UAbkjknSpGOI9LwKW&&bCpn8y+Q$Q>V6$kOfkjxQ>nsW<?r5IVk;*Wq>8p?hJ"
        "#4<=`Y9QHV$jHRN1EfCzaS&7-1~{M)Bq#^OHb5K&VnZR!3>YrSOiN44%t_TNs03-BqI)pvUAw{---lJg%N?%dvduC+p75ntZCCK~"
        "21(VOLC@+X*0|m*;+}7DCiUke?fnsNTIDu*->(o{YUg#YTwsaq#VqFO21jB)b}4TUcv362%K3T$=UlT>$@v^}Oiw0#>(|&5`m#xS"
        "y~mwWzD3sOGZ?4p9g2S60RYvOM&<"
    ),
    "rgb and one more, tiles": (
        "c-r&y)MDUZU|<knU|?inU<9&QftV4>W&>g-MrH;UAbk#qnSpGW8a61K35Z3ZY>+xBMpiKU8W2lE+4q202C4>xHIUebj7$tXK>8UF"
        "J3;LQx`x3SiR}Vqg9ukBdp{5dLCt{y4k(0~4Z|gwX=!PhIjMRDl?<q$fq`Yo;;O)+do0{u?j?^|&j?6O>wo3u!K5qR<CYw_<4NHi"
        "3Aq^)ULEVc;oxeje64qa#DZBx-s_b&TQ0e#^N_WNYx$Djf|rD4!~?v_l8=}<7%iImIV;sn=Soe-NwzDK?(Sd{ox-<r>F)_L#yavL"
        "A+J>~_PyceJHrtgZ2Lk^ahBj}wH+)z-WIAk+jrc0xsOv^<UHp!;W<iXx(h_sEU!qZNp^`hinLi4t~>oqT5;r_XXUo@FJzQN*{V(V"
        "HEU=90KErZ8~"
    ),
    "rgb and one more, bigtiff": (
        "c-r&y)MnsdU|<knfB=3d&A`aQzzAis!i12-*q}5MBQpaFl+6K!%s?@iI=FfyF(xQ2$S438OMo&&k<`J=6~kh$IFjB9C@saviefJa"
        "OJfm}!Qws*EMkU?Obk3wwhvS=2uU3}D9KDqOUukj)hnn(2&#JJPuY2oLpP{=&cSB_rcw1vPQH_{O=@3r@tcBcR{xfp%o@H$)Au~&"
        "HVCbnf8?dGMQqdZGascLQoGh)`Kj!YJ8AnJHtm4YS^J;x8AsGEI{rq?I-zyd`7d(L8NHjXGpczPOx<;#Q!lt;?xE*`X3-5xPraA4"
        "OYQ&wz0g71"
    ),
    "rgb and one more, big-endian": (
        "c-r&zWzb?^VBlcjXJlYt0kVJ;11lpVoXy6_#K6n|kvqi53}!QeWEk0?Y$hNf2v`4sQ4}f;6k!xYGDjTFu3(g6V1=?zF-pVPml$P`"
        "%-29-8-i?M-~r-Wj6qOw7~p_Hh!`A~WTvI1W#**n6;v`H0adU3DLe0R=mwR~IrvP#G^&2d$#)XAN$qPcep7JG>fdscS;Mzz`ksf}"
        "2BB5+kGvGNh;3Sa=A*PjYS;QJKb1XlCvCsOrX5f^YyT5I<A~Zt$KQxqC$z3Q|3%I@qj%GFMm6t(sk`oT>IGNKJ@j1AEV^OosrQn0"
        "$sGVEm_;-"
    ),
    "rgb and two more": (
        "c-r&y)MDUZU|`^9U|?inU<9&QftV4>W&>g-MrN?sAs}W3vO(ftIVhV6hy|hQKLD{PR2-y749OgED0><ZOEI#7*=K-Q8p^%`#4<?c"
        "Yap==8JQS(fb<<84g!jU?1TXhIE1N&;gZa>w6x5eRK0>qgmP7{{3$!{ap(q>&pG%^z%;6U$;o#Twn^=4E`C#R&FbHBlUc*JX!@Rq"
        "+y<dl^N+j~wuo(7e&(aJLu%LhD?gPzawl!S!=@cjI&1$EKI4emMaSQWStqovI{!t^Iiq*ebw)Msf~mXibLs_G%sup6&@8%P>8baU"
        "cF7%UFMU^Z%bu|H7K^4|@r=EXcnrg;7aV;hVj0)G;_N2?TV_<*"
    ),
    "rgb and alpha": (
        "c-r&y)MDUZU|`^9U|?inU<9&QftV4>W&>g-MrH;UAbkjknSpGOI9LwKW&&bCsQM2;ED99|=@CORM;ywo0AeXdRxtY%5KBYZmw;FX"
        "$$SkYwjm=E0}qhC1;jx}_JRNh6vEWPa7kubT3TjKs$M}Q0}@d6%Ad0H9*1sF`J98#1Wcpqmz;bjVVl&x=HfR6*R1|6H<>kji>B{+"
        "$ZZf>HUG#<VT;(N<!3%hJEV54zw%SrBX`pFJ8aqkrL*=w;WLh?U3C17m~}$ys`FpuoHKeiU1wDDE||LOKBr!A#oR;B1<j%xmY#Yq"
        "X_wpq04^y-E&"
    ),
    "rgb times alpha": (
        "c-r&y)MDUZU|`^9U|?inU<9&QftV4>W&>g-MrH;UAbkjknSpGOI9LwKW&&bCsQM2;ED99|=@CORM;ywo0AeXdRxtY%5KBYZmw;FX"
        "$$SkYwjm=E0}qhC1;jx};vm2Qg)lJ~F3C(wOUukj)hnoEKmw{>`BQe@<IoK%pL6h;fN50yl9TTwY?Ip8T>Pfsn$^GMCbNcb(eynJ"
        "xeY?A<{x<}Y!TbE{LDvbht#h1SAHsc<WAathfO=6bk_bSe8v&Ai;lk$vrcGTb^eQ-b4Kr`>x^pN1ygt3=hO?Xn0x5CpjmXo(o^px"
        "?UFkHEqg^R"
    ),
    "rgb of 16 bits": (
        "c-r&y)MDUZU|`^5U|?inU<9&QftV4>W&>g-MrH<PAiWKUnSpGOI9LwKW&&bCsQL#$ED99|=@CORM;yxD0>n~`tYG#YAeM%*j{va@"
        "lKC1)Y(qvS1|A@Nh5-Tuzz`-2!zGz%X=#}`sd@#K3<&U)`4szl?kW70!g1ox(i-x-%AeGZF|THyz+K88C2TLQBF!oPPU*7Ra^@cP"
        "LhdkrYheX(R_RxA=asgobuj0$2XUM8%Lp@yKa)Bww?S#DS|+m}yD_%}|6id;V#lS{$W2r#Q}bfhXBXlA$#+lau-FQzUb!Nra5Zga"
        "0rsz4xA^u8EfMRK%99ILvQXn;{>XNXYd7Blp;oahDStT=B}uinOqbZUbIsvv6iO5GmNJkNRRRFR;Xb_"
    ),
    "rgb of 16 bits, compressed": (
        "c-r&y)MDUZU|`^9U|?inU<9&QftV4>W&>g-MrH<PAbkjknSpGOI7kN@l+6Uhf>8AzfLIhN4$>orWR5tL?F7V9jI3bx2_Tk+vM&I!"
        "3{)=&Yap==8JQS(fb<O@wnefR1O&hkrV@rrGSkx1GILV(3Mv_pLB*Wpgo;x&UA4C6T64a$uv{;8=e*s$+GBB-;sdd*e9vOaLJV7W"
        "?RV-w(&zo~lJvS|XLTBa-!m-?+o&_AicxKf9|Hg^Zz<g"
    ),
    "four of 16 bits": (
        "c-r&y)MDUZU|`^9U|?inU<9&QftV4>W&>g-MrH;UAbkjknSpGOI9LwKW&&bCsQM2;ED99|=@CORM;u9w6eBB`eF})Bq3laQEQ4ge"
        "1`^wlk%@r^NZ$hDAgDMD2tXlBEew}rrlqB2=A`NsR5Bogr_86=*K<$duN00Gcb3+W=T-isc8qy7`vmS%{wQI4aTRG!`FBc})s{2&"
        "uorTN@mmWkh_gz+k~^=oMXiH5mpzEvoL@$mQT&<IX}JwbQ`It={n(AUCHVgeJrX-EwMK5DQkj|;vp%~B_fNiiLWjjxNcGAUDTS+P"
        "GYhbP<+{bUUucO~r&OL?u#$xu5A#R1Yh1he76`S9Wl8zVnJ7uBy=A(@ww-GZU!zc(n75RHoT$<-)pJan*=BIn@+Aqmi|I%S%6(J3"
        "t-79R3R@*t9G|n0h8VBZC)w+YdsHVdm9j-~+4HFgaf-c@yezvz5ddGLQJM"
    ),
    "twelve samples": (
        "c-oDQeMsF_7{*V&Z<3qu<R-bv%}sKXU^}<jRj8m$!Gi4^vnW(h&|%pvy3MV!3d$;2u*^|Mg$flEELi5Kqr!wbDp+QjWsW)Ks71ko"
        "WezNJ%&m?JmL265{HL&U_`T;j&-<Q-bMoY25CZ@R03bL(pduhhPLmK6!9X0I-$5{__x%0d0WHD#y_sc*mh<=Si32%$E{B0e5+U||"
        "9~LX855r>T-lCAa1Nlb~bpP!e@KOzZ7V0<m8gPj(+3&*s5ac05g@LCamm&8dI0ir&<WtBL<R3`MOZJODyx^1OY&P5c!F#WL+yVa2"
        "x=EcD5PjUKjs7Bs_=?0<YB)Sbu5o=@QR;DUfym<))h_!`FpIawP4%AjQHI7R*+zx2e#5S?#maiJ-+u*rz;w&`$tCX`YBO_Eo0;-%"
        "BTY0XO&Mq0T`(4_5ufW{rOUx4H7Fd{|8#z!&I_(S@3coEb%)O;BxgE2O(OibR+~b@A)<oYQitsm!5ZEdFH#>{Uu5#|MYc;hWc}*j"
        "V(S#bn(*Jko-!kHWpdlQf)+FDQomW^JwUqYd}+zJ=-S9!tW8WA_tQ;)i%kh<bUyuUbX6$TH=Kd!b!wUKNfbCM;d#>K=e72f7v3SV"
        "oTN?LX9I*7kJqZG{dJ}S-(rWA6V~5;AJ(A+)`H)RsqBp0lGOZLXdOey6K1{l6d9o_rETN7Ta2v7`o$9C_jEVNk1Yuo^;gpmqc*BR"
        "r_+<sJJd6NG*RX3gjdN@enT5bm4(Yh4_BbA*p~vAn2)!sp8aDci%aoo<*X%V#<5zq+}iX%!;Z46a&NNG{|W720(rsg^i*_)Zjm(e"
        "u3Lu?^n_S%knRYmjBN|o^|#aiM*UQYke6PJKBNp`Hqq*s(KloRPbVf*jo~w5l&jKq>>EKTu@N6o%j_qa9=ssFqFl0$WahDU)>F95"
        "msmBsD~}~>{6ElZOu4*i4tht?Rk~LyG#|MgNI)-$okr-+fR>mh-qqhv6JUa>7f5|8x=bAt))IYAQS=LWfzL}Urn*9doaI_IGj%U$"
        "AZTt<ZM2zS6t9Z!C^xKAnGI}!EmNK(zsJt8wlbG&^W)fUrb*_KQ(iT?OOHu4=5zNNQciD*gT`@p74*gm#Yg(*=>RNHokFPp?ED9^"
        "hTzZ"
    ),
    "four without a colour": (
        "c-r&y)MDUZU|`^9U|?inU<9&QftV4>W&>g-MrH;UAbkjknSpGOI9LveEeKWr0f<GR;vhX@Nalz`*%d%6#mEX~p8{fODEkr+%OIJl"
        "fy6dsWMbd}(zk#(2q?}Bq@OWB00$Jp)WUE{W?EWWW=^VJK_vqcQ1!~6vhyB?ZczE0gU<v^qw1HOd?#U>)V}88HwD+M{w+6|HGGSv"
        "?|H~=5Lz|=$V*|1*rw%YK1w^JcCEkiQ`sYT()K%S+5x4r_CMh>j;LL9{Ee7(LhGvYU*w!KdN*BXRP!#Fy6ZltUU0?SL(c`xq8pZ;"
        "dM|00+yMZ|Uq%x"
    ),
    "two without a colour": (
        "c-r&y)MDUZU|`^9U|?inU<9&QftV4>W&>g-MrH;kAk6`U%s@6s94v>#7KEyQ0K}qDagZJ{By+@}Y#Sh!Vq^ug4*{_>lzj?_WsuC&"
        "Kw=v*GBNM~=}SNy1Qmw?Ml@WKnU<E8nUktlPzjP&^~#^J^B#w8Q2CsL&jd`P>X)2+Ct;h^zUJaL1=p<pEjO7pe2b><dB|-LS~dU3"
        "OJR%HrsZcoN;{->tp@<BpC;`"
    ),
    "grey and alpha": (
        "c-r&y)MDUZU|`^9U|?inU<9&QftV4>W&>g-MrH;kAk6`U%s@6s94v>#7KEyQ0K}qDagZJ{By+@}Y#Sh!Vq^ug4*{_>lzj?_WsuC&"
        "Kw=v*GBNM~=}SNygk(MgR2~_ZWTvI1W#**n6;y(xRlV}3?7YXJ8&p2$;4=Z!sQM)*-$~dewXeDOO~Ey*f6Gl~4d0^admeHdgjUTz"
        "@>19$wrTm9kJ1jQUF!j?V<zt"
    ),
    "twelve pages": (
        "c-pnoeMla400;2jy+8N<+;ex&J@?!_&)q%G-SKQ$IVSA^B?U*i92pZPC@8pkhE~>Odq81=V~&iB851T<aNx+w*h3R$O;B)TWTa%w"
        "nBc&Xfm=q#j7g3j<f)$6U%@>GU+&BAUikd;J#u6}@Bsi=03Z}V*@k5U<vN}X3?X~npAC}hd(ZN^kb8eI8#(VhnD-wg*UPdAL)c#b"
        "BpWT)KhGwS_w4})22A$;Wi}%S_~-oZoNi5}Qmt>k{@gpAApiOa`G&YoU*bE(CZ$qK7;JpY{R;V%xJaMj8^m(O)<|PBw&Z?<yic5>"
        "kMpIXsbJbhbRjn3zKgs?9HS5Mx(F%j;rVDLHt4n@uMh|65WgE(3(kedqXV(D`!e!8A<>Vy)xd0UEZiUMh}FB#Ab#Qzb(fnCj0XF{"
        "?a{he(q)j}@H^BkZY0nfYzx;$OJb_~3;aEPle)t71X978aB)<Q?Kt1TH}K2US*|5e6)Xx1(QRwRxei~#JE<nFGLQ(e;jPHBHRW7{"
        "&)^MIIcEpR;HJ71nY4zTQ}A)TlrlLiupuv~6OkdS+c^dw!gUJb)`fXFqYg&8tY+sR9Kv_WHFi!Imj~2zq|vHyB=|A5O3t!lLciRh"
        ")<?=L%XtLd#iq$owoho6>(pc<V!_TG=oU6Y_Ofk4tz4q2ktgPT`zCY+>mgHYjZiGh>W+TTylr2G&SEWO6<Z_-@^)xNpE0l5olp~2"
        "NhVlU*pik*Q~Fi&g53a>V>U^$oBkzfGBm88Gf&#3kcnaB2D9LwkcL9t`U$hz)*%R6_sugI|De<rYSs^%`|Mq?hR*rMnE`)VY7ABA"
        "j!D_8U=|(o^)ns*dZ{dA>A3kIJ`G0EK3_Xi=TAzJ5Ul@fd>bDDy=a@SmMQV8(i7#r_O<a@ya%Mv8ecIZ`**~9%5Cjq<AZn$s6vZ;"
        "0<+Dph%?GH?LFh|cqK@ntZ$26=BLD~$_4EW<JGtgNOY4}q9^%b@tkr}J8B$=V_*YWASUP`zFRz@RBO)~f%qTpJdz;>=`OxmJgn@~"
        "IOF%&kM1}!K&0tLzCv^qO8YhXL+lH;AL$_K=`!9DapggHG0J$dO9uLXyL<utcb6}s|J~(F=+j&DMp^Bl@?pW0=RH(@h!sjX<DoK%"
        "7fSi3hsxE0DU+~w%JW2_l&3vZ?)Mc+nekA$STN;750z=MP|5`2ol>U?rF_jpB>+z={{l1;_ss"
    ),
    "twelve pages of 8 bits": (
        "c-r&y)MDUZU|`^7U|?inU<9&QftV4>W&>g-MrJS@q>34d%?4$Iupm_Z1t1nh5*I@<M;yx51Y#*hRxo=N5KBYZn}ApYNv|Oz69W&B"
        "-UY<Jpkm0lBr`27Ei)%oub`3v0V?J&$}v3r&!Fm+KV|1V4&9*gIR~E!m`2qvIr&b)HmQBh#cv9($By#e0+~$(A1`1e&BqfM5k8*5"
        "i0b20jF`TJ`X{S@%S~nt-=gVz9&#ImR?R>1QrIH4Y5AFt(hjLz>+fvkYod~W3Ye(ppIJ;e{d47~vPbTu?RVI;14?J@f5K-RQM>5)"
        "8!_vI)>Y@f$h|ttuSF&QI51PsKUvH;{o|a`yXiWkns>p}UH3Wlf-B}8dM;=d-LUl3dr7<Gj!P?e?@-A<0xZ<?j};3}|E#_AUC}Lj"
        "!q!_XntsJI_CDe<469yn^p%KZT=R;vpWd|a*Hg(q52)xLE>@iWk#S7x-f;Doif7*B9e3Gv0?TF}c*<`QS-1GaTXCDjJLY_bRPxUT"
        "R_giZ7H<Evt-kP8-X*hd^9?3-pTcRoA8_f1RL(p6LdZO(aoOpYA$&Kf<evsM>iK6C8&3axkg`wdTzC10l6%g?ZMRvq{7Yu;d(3MT"
        "UbFDnYf-Cb2l?8l<eva`>iMUN9jAZdTUMU?EbElsv+)|1s_2mgpD~sEqrgEu|9ElW^bb<yiKQxflfrkKO8)skMgK@~;`9$v<%y*#"
        "dU1`fgG&B6z)3y-Ffics4^ricr7C)>z;6HmozEQ7"
    ),
    "twelve pages of floats": (
        "c-pnqe~j0290%~v_kQ1Xm+Py$eq7}`-^+D%sZ*z)_x&-mzB8M}j5TJK+ZuOk)|zIv5EHU|(GV7niL!+6A-b=m30XqJ7dym+jL;~|"
        "qjos@%hu<+z4m#1UXR!3^LhU9-QMYRb5Irp!Qdc>6a^7ov5NHfC8{7&c(kuqh5h|e8_*Bw-|tg31Lm~@-ZQMfze<ga6d&!gs;<A^"
        "qM8OgJ0(&ORJv|g=l0JF)v}V{@14JD@xqRdj)hlTHfhn);J?2_t}EY`%V%41=}auw(^;2mOh<E>Sa}Yb@9*vD%=czuJ9@kF+1_-f"
        "ySFi&>Gd7+`DShIqephOn5*cKpn+?<`*w5JXxv`he%y0$^SJkzW#is!o{#%Z{74wzP1sM!k&q`LSHiOi#L{dYo6i=oPPT+CbHALg"
        "Fk5LSW4_wn8n%{ovvq6(+r+YLGt04UYzN!PcC$S!&-&P2wvX*+2iQS&m<7qkbU`wmDN1(bOOi4tdpZXt^VzCo5LB}$8_H_g2v)~N"
        "vwGIRVr(26&nB=IHkq}usjQ97V6)g9mS8D%20N3b*;(vtb`G1z&SU4Z3)y^j5xaz4$`-H=wvb)UI@uz2C0opvu%+y3b`4wR{#t&W"
        "+4Xjoo8MsXMs^ch!ER=^uv^(mb{kv8Zf6;G2fLHq#a6Ss**)xDwuaru?q?6Mwd_Im5PO()vq#vY>@l{EJ<gtB>)8hOB-_ZIVw>30"
        ">>2hf%d+R#^Xvt-nZ3wfVp~{_z09_<SJ*c8D%;LpV>{UE><#uN+sWQyyV%=oH+zS@%id#q*!%1Q_94r&kJ!iT6V}H*WuLLn*<SVq"
        "`;vXd_OY+oH|$%spMA%^XFsq5>__$!`<WeNzp!7~A$FMk#(rmiuppJr1gT6clFDZzDgV_}SH2+C(^;4bf+AMLidiu$VI{1Tm9a8b"
        "&dON@t6+mzC97mrtcne0gV_nJnpLwQYzT|8C_9l2WkXpFt6{aQmJMUW*>E<3jbJ0$NLI&2u~BR^8_mYBG3+E(&+6G&HkLK826i%w"
        "u^4M)jcgnn$4+5Qtci_h<5@FnW)s*%Hj%Zk7B-1ZVyCjnY%-g|rm$Al%1&cb*;F=-O=E4Wjh)V>v*~OGo55zXnQRuD&1SPXYz}K@"
        "?JUj`EWwhgs^fC*ToCzx=T1ZEKj%(!>A%mNfoDx?>9J?c@kzWZq{MqeOFXwAoW!fk!b+SADe>I$uo6!%3@7oS&=PM9De?M>uo5>F"
        "g_HQ=L186c8&cxx%CHg-FAgX1*3c5K3Muj8s<0B5m4uTx2#!tsCo(8q!T"
    ),
    "three pages of rgb": (
        "c-r&y)MDUZU|`^5U|?inU<9&QftV4>W&>g-MrH<PAiWKUnSpGOI9LwKW&&bCsQL#$ED99|=@CORM;ywI0%9pfRxo=H5KBYZM}Sxc"
        "$$SkYwjm=E0}qfs1H|uu0vuonlZD}u%(S$$%$!ucf=UKBQ1!~6vhyB?ZczE0gU<v^qw1HOd?#U>)V}88HwD+M{w+6|HGGSv?|H~="
        "5Lz|=$V*|1*rw%YK1w^JcCEkiQ`sYT()K%S+5x4r_CMh>j;LL9{Ee7(LhGvYU*w!KdN*BXRP!#Fy6ZltUU0?SL(c`xq8pZ;dM|00"
        "+_Co3cSX1C30rTmX!;e;*!zgbFsypP(N`jtam_2vev)xa>)vqnmx^cJ<Q;d}bpp#~A9%`d5?QzS#9MKj#J1HJzRJ5~_HDkwr0!EV"
        "ZTAB%{gBFehhGSp$22ZG{Xxn;rE}foA4={y6Sv)F)$%Wyx$iNrQFzV5W3NT6;#*dp`z-5}-m~!<7O(RXjO7VTgk#x?k+fKz#)OFF"
        "c}%!tc^MO~n5B-pr_jjVAb{Q706UJC9s"
    ),
    "twelve pages with the tags of one": (
        "c-mcz4@eya9LMj^ySsPq{@=ZO_y6y^JD&9_ZPp|O1qW^!851TbDbsvQE8AWwXec;vWMoX3FkylNM@Ghkq!|+&I5ILaGG<J0;K;zy"
        "i;Ni)ln#4@><6FU?*qTz?|bUhGe8so02%<m2mpqLgn)TRLm&`7bT$Oe`{C}0(;x&Cg!AhVF8|AhO+0dwIFc#ly(~lpkwedgXnEfa"
        "Ngequ3iHWu9svK<hwcY&pFQ8|zG62Ny_mLNPTMcNnYP`|Y*$Ci+0NFt!bRw<eZW%%K1F9+CX;D<xApn+J^$bQ27iy;B(5+$LZeiv"
        "r7SAB6MPGQfn6rLn0ldH@-*DaxvRlv@F&;>;tW$N*b<^`n=9^Y@DcnTcA7ZO=mIEhsmtb!I~ugXuVcpunc3$z6HDr}IpTH)ufi{2"
        "apDQR!7nDJ)L}F0)&<YPEcQ5dpI+c66GLi;S?iVrB>We8FLs-r;0F`!YK>X!D#0Jn&*-h#HF|*0B&yXyQ*`(IAEB?%tFb=1nXgKu"
        "RnFXX*8Q8%6|^VTNLTWy1f}j6YtFoX8R|moW978R<B6QIYRoy~{srg^S{k!ygx?ldlv!iU>Gw}V$5A~7(p%iJIHQajy-t&V43g1("
        "e3M$@ro|DZ+h}kq{5bRk*}xa6DQ;NIDs@Jg<M@xk`^W-5NeyuwVy#kQ7!Ks$18*Y}_#oBJ)riH4VjS2Hy<6ZlWB|`l)m)({Dtr0^"
        "`>uBt>_eLIDk{x!;;y`|-?49aJzyhJiKi%v+ljBq^ZIrBl2;FwBOZ=ZId(NZCy(nF?Q>o!Xd?)|O|G!B@iDnyZ?R8$ItU_L(PeUm"
        "9gX+OP5KGDz}p8lBTLa~a)j-UH^>#bZ^yh1U@<Zk9VWAEUA#<obku&7TmU8`L(vYhmMw`JGNk`*{g9jh1|#j!8nT#G;s?@0?K|ts"
        "<N%O~R7VR*k=+v>NO!f*txuE9Kvg6i<;Y!TUAQCN&_1@_PgVk{2o>ES)|h$Wx^zi<$9f~_0eB>btrBz0xNuQAr@dwsB@tj7UcqLG"
        "F{WQ=kxpvQS$y)JU>TmlMu}dgNjM=DXtedW`)e=_k6_(I15+XRQcU~P{Kfqy7>2W09Z|+O0xCUHe=`3Cy#eHZ"
    ),
    "signed of 8 bits": (
        "c-r&y)MDUZU|`^5U|?inU<9&QftV4>W&>g-MrJS@q>35J2FoF_1)=I60I?{NxEPW-;!w665KA$#g4x@ESQ^US2gDjkdJP$w7<hp6"
        "F(3|xiZd}l03#YM$xKU2%gjmDE2v~Z1<fnYeiFAy?A~zom%K~n<Q;dJ)O`wPA9%{8A5yva1OPAV8Cn"
    ),
    "floats": (
        "c-r&y)MDUZU|`^5U|?inU<9&QftV4>W&>g-MrJTu0f?EQY>*B%C>w+Yq3Rz1u_%(b7?L^SP<A#DOEI#7+1r3v8p_@W#2QF?4H=mj"
        "c!2aVAP$C#Gc!N{BN{HrOiN44%t_TNsANC|6>~(pH}W<Z@UYyyv}~!bSJbH)*NhFEjhKxq*wQ?9-Ox2oVJmyEF=g++691Blxx3GA"
        "+nMntF3evj=J6vJmVZ(Dmrd-#(v2_Pp0q+R_JR71KDoN|hR25$WQ-Q47o;Rq@XX)%Sml&FPo%L30M@lSh5"
    ),
    "floats, big-endian": (
        "c-mErF$%&!5JhK<ih>9VDwxJ10TC2zEVH&LQdwFX2$*1Dp`B;gGkAvBWw#PM!!};PJNVTQ)`6LM^XJb*5zUCGMO`MUgV3nKTyc|Y"
        "<a~L8;*^XHH!bc}{wEJCeQ5m|Rea(xHA>Fet+?Q+b-Sb*xP!d&rqn<67i{M-iQ_og?-qwM{fAy7S0>Z*+-OgR+D&h|ANsoONsYaF"
        "<wlwGrXHSDxyjU3hDwIMx?s13j#~wP0Z#$F0Dt}l=mF*cx&RCK1pESb0{R<TH$Al"
    ),
    "floats, big-endian, compressed": (
        "c-r&zWzb?^VBlcjV`N}p0kVJ;11lpVoXy6_#J~(@D*y>*D4PRFutC{CRg8jg^$!?Dk;KK2%n^sPGa02ASfT7~jM8xSK1K~By@m`-"
        "KsFB$A7c!Lii1c9U_{0xnQ3WhnK`L?1(gh_pkfYh_d>=710I&-jS)H88&9y!mYlJ0Zlk0Tv+<U7ovCeS4)E3Z*iEmt@BGv8teW3n"
        "Yv0v}t5f19Sqa{}es~dI_2j7jwEnJ@DZ4-JK5)_WhwwR;`6pU5Z?Kj#rl+(W{~&1_cG6yv#aILYQ1&`="
    ),
    "16 bits, big-endian, compressed": (
        "c-r&zWzb?^VBlcjWn^Gr0kVJ;11lpVoXy6_#J~(@3jhgbD4PRFutC{CRg8jg^%odLk;KK2%n^sPT^XeqSfT7yjM8xSCPob;y@m`-"
        "KsFB$?_z)eMr2%)nU<E8nUktlP|1J*6?2jk66#LXbyeH`7kTLQ(IPXwk~cMOtN)qfH^PhkALxtr32mPqHt~5#)$+2Lm6p}~<%;z)"
        "Hf-I|WU~5>_R`M`A3q870RYfJED8"
    ),
    "white is zero": (
        "c-r&y)MDUZU|`^7U|?inU<9&QftV4>W&>g-MrJTu0En5PY_J@Z4FZBt^%sCx6iJO3k~!i~wha(VF|vZ$tAJP<%H9OT8c2E#8JQS("
        "fb=e?9gJwWBr`27Ei)%oub`3v89Ze^#lD_<3V)?=oVc^JhCHwGC$(eDtJx=Tm-0sm+l#A6bIQL{x~#UGxre=wJB;62SV5ds`jy;y"
        "B>>XL8cF"
    ),
    "cmyk": (
        "c-r&y)MDUZU|`^5U|?inU<9&QftV4>W&>g-MrH;UAiWKUnSpGOI9LwK2B{Z>s(%2)qEK;=9x)_y#G&j8AeLfe1+(`7u{4x@42Wfr"
        "%-29-8!|F6@Bry^3=qHpg)n&-F3C(wOUukj)hnoks$@|0%Ad0H9*1sF`J98#1Wcpqmz;bjVVl&x=HfR6*R1|6H<>kji>B{+$ZZf>"
        "HUG#<VT;(N<!3%hJEV54zw%SrBX`pFJ8aqkrL*=w;WLh?U3C17m~}$ys`FpuoHKeiU1wDDE||LOKBr!A#oR;B1<j%xmY#YqX_wpq"
        "05t(bmj"
    ),
    "lab": (
        "c-r&y)MDUZU|`^5U|?inU<9&QftV4>W&>g-MrH<PAiWKUnSpGOI9LwK2I&@rs(%2)qEK;=9x)_y#G&jcAeLfe1+(`6u{4x@1c+sj"
        "%-29-8!|F6@BryE3=qHphA>$eF3C(wOUukj)hnoEfCE*p{3$!{ap(q>&pG%^z%;6U$;o#Twn^=4E`C#R&FbHBlUc*JX!@Rq+y<dl"
        "^N+j~wuo(7e&(aJLu%LhD?gPzawl!S!=@cjI&1$EKI4emMaSQWStqovI{!ru0ODgdkp"
    ),
    "lab, planes": (
        "c-r&y)MDUZU|`^5U|?inU<9&QftV4>W&>g-MrH<PAiWKUnSpGOI9LwK2I&?Ast2jr1H__GaS&e&$sBR0IVXTvijfs8eh!GGq3mlw"
        "ECbcc1jHIhb{R4<G4KHCdkhf30frwy?gmQh0I?hx!qmfXNoHDFT4qkFUO^>PCqw?dpo6AMB-+1a-SpjKFkiUoW9k);?b@^WYTqQB"
        "SDnI9{w(UG?HYxC=Awt8M=X|0cm2%06R_WSkyz^&ubsMc1nS=<U3A@|F`c{WW$YP;^~#gjN}og=w_YU&0K;H7n*"
    ),
    "predicted, packed bits": (
        "c-r&y)MDUZU|`^5U|?inU<9&QftV4>W&>g-MrJS@q>35JW^Dk<LD?WI2vz?8h((da#gNPqhqC2?Sc;Jq%-#mX(opt3Al5+AYskpN"
        "zyqX@0kJJqoQVMf7}0P^W?EWWW=^VJK_vq^_^ZmaQ&sD~DoeSls;U-)>0edGcUu2cS=In~ssK6}6V?"
    ),
    "predicted, deflated": (
        "c-r&y)MDUZU|`^5U|?inU<9&QftV4>W&>g-MrJS@q>34d%?4$Iupm_Z10WVf5*I@<M;yx51Y#*hRxo=T5KBYZ`+!&jNv|Oz69W&B"
        "J_f|LP;n*(2w+6RC7EeyX_+~xdIgmXsGwpFqa4G-{|u@?uv1k_Rka+*&@u&a-vN25Yk)k}1P8Vr0H2r?^8"
    ),
    "between smaller copies": (
        "c-r&y)MDUZU|`^9_{YG)zzAf4Faslm%?x59v6&c|!So>zAIOHOXM?htfLIW!{sRz;Ld8LP#E{Gphq9%CSc;Jq%sv6)L)jOASO&>_"
        "4J5W9BNGD;kiG%LJU{^sFoem%a7kubT3TjKs$M}Q0}4>}y2qh=@R>kX{}$h(=?0-ySAHsQzr!|b{}Tp2xW8GE{LO~s?_G?9{r!Lu"
        "yT93x{2hhl?*ohof1h9^?C%RejujKp{#NzMpRyC^<)HF8Kwq0i)h{{uPQo^+ea*#h3a-FFxXG*m42L}rxq(43|Hw;Wi`b^+XFf_h"
        "q;{<bhKxt<Bw*lZ2b2QChtD{ocG2-SV%7<*tImIsBQ3>zVImxI3e2RXm|skYkYi#d9CBRDkRTx`#o$ga090UQas"
    ),
}
OTHERS = {
    "jpeg 2000 of 16 bits": (
        "c-muNVBpCLP*C9IYUg5LU=T?wsVvAUFj4@r8KAT-kj?<oVwo8!ML?Pjh*=q!`Po5g82FR(bBY+jOaTT4MsA?u<p2Kv0~z$eVysXN"
        "Fo4Qu=4WJtp#MP(JU{_PMg|rZ2FCv}3@i=}|5F%L85o_5QWHy3QxuXa75ocQ^SlCF-4)7Gi;6Sz^AwEqO!Z9uPhj8zn>HD!aq{^;"
        "1`h-SLfrelhpzkXwDHSlyH`91jg|6cZm*Eqxk5-d#B7CHc1V}q!NMt*%$_n7ZEZRH>`g02!@kZJ^2h)2xG9#@CRx62Z`bPPoM9zy"
        "s-E%cQR<3Aj!JdwH_BaF;J#(~?>?Y18_pk#DyL}wH+$2)V5RHb!w(Gl(@x9HaG$YU@NK7y=>MAl7Aj};"
    ),
    "jpeg 2000 of 15 bits": (
        "c-muNVBpCLP*C9IYUg5LU=T?wsVvAUFj4@r8KAT-kj?<oVwo8!ML?Pjh*=pJ`Pe~f82FR(bBY+jOhF*t4OE=`-~WFggC<yv6{-OS"
        "Q2C5}jEw(-7<fQT1_l-u2FCv}3@i>6|5F%L85o_5QWHy3QxuXa75ocQ^SlCF-4)7Gi;6Sz^AwEqO!Z9uPhj8zo8t-8IQjmM#2rG4"
        "xz8OA1-81|m%49T@>DCAGf4E7pP>71$5kKLOWHE7K2m6qjc=5a((x}0tB%?_HF?UD|Niy=Zvp^F6+np"
    ),
    "jpeg 2000 of signed levels": (
        "c-muNVBpCLP*C9IYUg5LU=T?wsVvAUFj4@r8KAT-kj?<oVwo8!ML?Pjh*=pJ+u1>C82FR(bBY+jOhF)C0#uy*-~WFggC<yv6{-OS"
        "Q2C7QjEw(-7<fQT1_l-u2FCv}3@i=~|5F%L85o_5QWHy3QxuXa75ocQ^SlCF-4)7Gi;6Sz^AwEqO!Z9uPhj8zn_~pjIQjgR7QuG4"
        "Ab!(7^Y2;(u0C<Jx8+qvT<R{Rt`$=j{yLCaz)>at|0V#5emET"
    ),
    "avif of 10 bits": (
        "c-muNU{FXasVqn=%S>Yc0uY^>nP!-qnV9D5Xy^zOdYzkElE?r7iWw<6MNl?FL1uCZ0~+8f$SlbPvlxL`E;A=T8N_h`@fjhajKT~I"
        "OqxKpMrLMS8eFXukdw*;<t3IG7&_<Y<b&<X$}A`<0Mg!>1<Cn9S|qc$AQft#01OvoR%C(%n7O#PfD}(+nW1x|f&)lMI5|J3C@(pu"
        "f`JJL*&2XC;+X}xFh2nu#=^+d%mQ?kVQxxdi4X%9hXv37+XosNml(}r5n^)oVql-ZV1M9G*u(z3bghe4SC2-{-(*#Eoh^IL%M0hr"
        "AH8AS)XVk3{G_eMqU%QeGb3)>JbC!CS-WiF)^nG2mM*J5XP`G>S9UtjR))#>=^@*eU9fRlJb6x6qTtpW0+U#LE#2k|D^=Qx#Leb^"
        "s5EEGTfWyCUs@-s|9Nn2`lP#05C58E^rB4Z=UT<7eeEww*POKP>pd9Z_0U{X^t;9BdWO6HuRDuR6nk17E#Cig?LJoN>6dq87x?iV"
        "7d~;=dq-oz!?pu*uQ)x_VqeXC_jrwHhKBTi1&dt=4upK1#IiFmELTmGsYT0vL899BfNS3_J91xt@%OQe?bCNNpC6vRJ2F^kUuyW)"
        "XJ<l~Gj8zs29@1A`{?-Ihf2v}V#$X&Of2{8P+GC!;glPj4pznZT$waWqx-Y(g}jO#Yv=2{{9Sj^OGvcZ_w7BU#LW6>KHPC{d6wvk"
        "3z+tmf7e+*X_oatlP!;ACvEujdEWcT@TB6CZ@X8VOfmf>d@0ta{XR?W_G_75GmbBud%`BhAma$vr9#FND-5@_{HvOg#Mg9aZsDJ*"
        "2o~3tbklcLcD8J*yJlM_n)lX!KleCxZ?iz2zhyy)&U|gfl@hb3FRazb67~P4AUt99?w5<bZa;5cmBC(R{;BKr{k(m3>z?$!T5;9l"
        "W2zzZz4eY=YA;vsOkrUWUa$7LAnO;0%>3eG2`dwFjytVeEZcKSKFY|6f4_igWvm~&0|3W#K8g"
    ),
    "avif of 8 bits": (
        "c-muNU{FXasVqn=%S>Yc0uY^>nP!-qnV9D5Xy^zOdYzkElE?r7iWw<6MNl?FL1uCZ0~+8f$SlbPvlxL`E;A=T8N_h`@fjhajKV<t"
        "0m#<K%*;!JtCa$BQkkH<#4-az=lq;}uw7Z11w{ow+B>r#IUh)iWEK~sLhTcP;eyPHOppLG2L}g`;z=wsbZ%4ts}WAl&ne1F&Z%Hv"
        "0z$S1ppbZGK`zWsK!>p~GBvXRSwC`95=(>_xHv3${@-?JXk23SkXeYy*^7aF0t5eni*?oeZ-k{K92Qvb^YZ6`S*&x8|8xKR_T?+#"
        "1$RH5H08Tdys6{%^)<gA-sNl0++=;B#@E#0fAgt2NxwViZ}R<kdGrgLn$Wr_Pd{F~HDem%YBuKw{k_&JMXV!@{~z5Lf2-T2Z^e1-"
        "<A;wpU)+<ZwOA-WzwO<o70=QpL|WM0;QuY~z=F5gNOIamX4VOdcudN_hhIImX|dBO|4T1aAMQD@BKF@WNs;oCOjErb?r_AOd7s$s"
        "nRWNs@&6~D_Me$&T;sdPVpF2QbS*}~D;p1`nHL|mQ`}Ii_S{f+W~kvm<5gV@$5OU+c_lnMbjpIs^6F&UI|pv&?+J@v*p+oj&R9K="
        "QTL;7%Ze2tyS?A0Y`C~w<?OesN#1{px-U2TAAFf3Y^@vm^mtln-7H7zU18=+t_Ez_pp#s>%t7zCtuWuRNq_a9Gp;?k?P_n=isWT;"
        "F8sVZ_x3}sifvn`@Em@_Y?|ZPJ>yV*wY&L_-9dY|`NY}q9)J7!zCzWkfI~TVC7B=RTvVSpRqWuSoal_%pF&l-6(6dzYs~n5ox$;l"
        "*`u(t?^5m^314?7FKC*t(Apy$dp?Eacp4paE#9_8V)m|rPX*DOi84pD62p`39*bEb>ArO3v!uu2%4hfVu9VW(*(Z4b0EvYvrv"
    ),
    "png of 2 samples": (
        "c-rd>@N?(olHy`uVBq!ia0vp^tU$~rzyc&cCOI?%DJxGG#}JO0$!Q4*b*JjOPET{6@9*j0(h>V)`3-5ct^Pdxfe-(;`^<3SdC~O$"
        "po;LO1N9o+oT0odObmu<W-lK3Z{G<tg~8L+&t;ucLK6TKKqOo"
    ),
    "png of 3 samples": (
        "c-jHz02lv>P)<h;3K|Lk000e1NJLTq000F5000IM0ssI2)CnJ700025Nkl<Z2$^GMU|@dAeu{fNpOS!x5WC1vu{RR;Brks1^lj-6"
        "aXuji;V5x?X%%@+rFUwVnU}Noa2N8230sRRNVCelQaaBf9QDTYjpx%JKRkbUibM&o7hcc3o`>`44<H1Ju)OgUjsn6TJe*)b&!?W>"
        "J%0cd3I70zF{p(zYqJY*edW6)v|ntARHs~?Qm~o@GY{KGu4{a|p}Iw)c!2Q9JP`Z=1j0W=z+wR0Ge?j?&o$Wq0000<MNUMnLSTYu"
        "NnCm"
    ),
    "png of 4 samples": (
        "c-rd>@N?(olHy`uVBq!ia0vp^tU$~rzy>6vvpYC|RG6oWV+hC0<g|o@x>I#s)wcgd6w4;gPs&$$=NUW2?oaN^{+IiA{re;MOYf7{"
        "o4zBJC!2k;rc3fE9{%sp;oHI)`oO+TXa<LHU9rG~P6<~9LA4~2Mi+)zGUY*&^&OmmHZXX)`njxgN@xNAag8uv"
    ),
}
