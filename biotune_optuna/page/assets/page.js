(function () {
  "use strict";
  var plots = [];
  function narrow(layout, width) {
    // On a phone the legend and long axis titles need the room that margins would take.
    layout.dragmode = false;
    if (width < 480) {
      layout.font = Object.assign({}, layout.font, { size: 11 });
      if (layout.legend) { layout.legend = Object.assign({}, layout.legend, { font: { size: 10 } }); }
    }
    return layout;
  }
  document.querySelectorAll(".plot").forEach(function (box) {
    var figure = JSON.parse(document.getElementById(box.id + "-data").textContent);
    box.style.height = figure.layout.height + "px";
    Plotly.newPlot(box, figure.data, narrow(figure.layout, box.clientWidth), {
      responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"]
    });
    plots.push(box);
  });
  window.addEventListener("beforeprint", function () {
    plots.forEach(function (box) { Plotly.relayout(box, { width: 660 }); });
  });
  window.addEventListener("afterprint", function () {
    plots.forEach(function (box) { Plotly.relayout(box, { width: null, autosize: true }); });
  });
  document.body.dataset.drawn = String(plots.length);
})();
